//! Manifests as data: ordered pairs of a name and a value.

use crate::error::Position;

/// One field: a name and its value, and where they stood in the source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pair {
    /// The name, case-sensitive; it may occur several times in a manifest.
    pub name: String,
    /// The value; it may be empty and may have many lines, parted by LF.
    pub value: String,
    /// Where the name starts.
    pub name_position: Position,
    /// Where the value starts (the first line of its body when it has many).
    pub value_position: Position,
}

impl Pair {
    /// A pair that comes from no source; its positions are the start.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
            ..Self::default()
        }
    }
}

/// One manifest of a stream, without its format-version pair.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Where it starts: its format-version pair.
    pub position: Position,
    /// Its fields in order.
    pub pairs: Vec<Pair>,
    /// Where it ends: the start of the next one, or the end of the stream.
    pub end: Position,
}

impl Manifest {
    /// A manifest of these pairs that comes from no source.
    pub fn new(pairs: impl IntoIterator<Item = Pair>) -> Self {
        Self {
            pairs: pairs.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Whether both hold the same names and values in the same order, wherever
    /// they came from.
    pub fn same_data(&self, other: &Self) -> bool {
        self.pairs.len() == other.pairs.len()
            && std::iter::zip(&self.pairs, &other.pairs)
                .all(|(a, b)| a.name == b.name && a.value == b.value)
    }
}
