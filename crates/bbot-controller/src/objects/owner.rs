//! Whose objects these are. What a store does not know is removed, so a store that has come to the wrong ones (an empty one in the place of one that
//! was lost, a copy to try something) must not.

use object_store::ObjectStoreExt as _;
use object_store::path::Path as Place;

use super::{ObjectError, Objects};

/// The object that says so.
const OWNER: &str = "store-id";

impl Objects {
    /// Whether they belong to the store of this name; those that belong to none do from now on.
    ///
    /// # Errors
    /// The object store cannot be used.
    pub async fn belong_to(&self, store: &str) -> Result<bool, ObjectError> {
        let place = Place::from(OWNER);
        let found = match self.store.get(&place).await {
            Ok(found) => found.bytes().await,
            Err(object_store::Error::NotFound { .. }) => {
                let name = store.to_owned().into_bytes();
                let put = self.store.put(&place, name.into()).await;
                put.map_err(|e| self.failed("say whose it is", e))?;
                return Ok(true);
            }
            Err(e) => Err(e),
        };
        let owner = found.map_err(|e| self.failed("ask whose it is", e))?;
        Ok(owner.trim_ascii() == store.as_bytes())
    }
}
