//! Room for bodies that are in memory: many connections with a short body each are as much as one with a long one.

use std::sync::Arc;

use axum::http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// Room is given in pieces of so many bytes.
const UNIT: usize = 4 << 10;

/// So many bytes each body has without asking: as much is read ahead of each connection anyway.
const FREE: usize = 4 << 10;

/// The room that there is for all bodies together. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Bodies(Arc<Semaphore>);

/// The room that one body has, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Room(Option<OwnedSemaphorePermit>);

fn units(bytes: usize) -> usize {
    bytes.saturating_sub(FREE).div_ceil(UNIT)
}

impl Bodies {
    /// Room for so many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(units)))
    }

    /// Makes the room of a body large enough for so many bytes in all; 503 where there is none left.
    pub(super) fn grow(&self, room: &mut Room, bytes: usize) -> Result<(), Problem> {
        let more = units(bytes).saturating_sub(room.units());
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).ok();
        let more = more.and_then(|more| Arc::clone(&self.0).try_acquire_many_owned(more).ok());
        let more = more.ok_or_else(|| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many requests come at once: try again later",
            )
        })?;
        match &mut room.0 {
            Some(room) => room.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

impl Room {
    fn units(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    /// Gives back what so many bytes do not need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let less = self.units().saturating_sub(units(bytes));
        drop(self.0.as_mut().and_then(|room| room.split(less)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_have_so_much() {
        let bodies = Bodies::new(10 * UNIT);
        let (mut one, mut other) = (Room::default(), Room::default());
        bodies.grow(&mut one, FREE + 6 * UNIT).unwrap();
        bodies.grow(&mut one, FREE).unwrap();
        assert_eq!(one.units(), 6);
        bodies.grow(&mut other, FREE + 3 * UNIT + 1).unwrap();
        assert_eq!(other.units(), 4);
        let full = bodies.grow(&mut other, FREE + 5 * UNIT).unwrap_err();
        assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(other.units(), 4, "it keeps what it has");
        // What is short needs none.
        bodies.grow(&mut Room::default(), FREE).unwrap();
        one.shrink(FREE + 1);
        assert_eq!(one.units(), 1);
        one.shrink(FREE + 9 * UNIT);
        assert_eq!(one.units(), 1);
        bodies.grow(&mut other, FREE + 9 * UNIT).unwrap();
        drop((one, other));
        assert_eq!(bodies.0.available_permits(), 10);
    }
}
