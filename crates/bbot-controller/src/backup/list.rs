//! The objects of a back-up, which may be many: in a file that has no name.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, Write as _};
use std::path::Path;

use anyhow::Context as _;

use crate::objects::Object;
use crate::store::StoreError;

/// Objects, one by one.
#[derive(Debug)]
pub(super) struct List(BufReader<File>);

impl List {
    /// Lists what `next` gives, which is told the last that it gave, in a file in this directory.
    pub(super) async fn new(
        directory: &Path,
        mut next: impl AsyncFnMut((String, String)) -> Result<Vec<Object>, StoreError>,
    ) -> anyhow::Result<Self> {
        let file = tempfile::tempfile_in(directory).context("cannot list objects")?;
        let mut writer = BufWriter::new(file);
        let mut last = (String::new(), String::new());
        loop {
            let found = next(last.clone()).await?;
            let Some(object) = found.last() else { break };
            last = (object.kind.as_str().to_owned(), object.sha256.clone());
            for o in found {
                let kind = o.kind.as_str();
                writeln!(
                    writer,
                    "{kind} {} {} {} {}",
                    o.sha256, o.bytes, o.stored, o.place
                )
                .context("cannot list objects")?;
            }
        }
        let mut file = writer
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        Ok(Self(BufReader::new(file)))
    }
}

impl Iterator for List {
    type Item = io::Result<Object>;

    fn next(&mut self) -> Option<io::Result<Object>> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => {
                Some(object(line.trim_end()).ok_or_else(|| io::Error::other("a list is damaged")))
            }
            Err(e) => Some(Err(e)),
        }
    }
}

fn object(line: &str) -> Option<Object> {
    let mut words = line.splitn(5, ' ');
    Some(Object {
        kind: words.next()?.parse().ok()?,
        sha256: words.next()?.to_owned(),
        bytes: words.next()?.parse().ok()?,
        stored: words.next()?.parse().ok()?,
        place: words.next()?.to_owned(),
    })
}
