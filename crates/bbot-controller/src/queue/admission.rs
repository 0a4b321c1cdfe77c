//! Who is let in: which agents get tasks at all.

/// How the controller decides about agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Any agent gets tasks.
    Open,
    /// Only agents with a known key do; others are turned away.
    Keys,
    /// Others wait until a person lets them in.
    Approval,
}

/// What an agent shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The fingerprint of a key that is known.
    KnownKey,
    /// That of another one, which a build that waits names.
    NamedKey,
    /// That of another one.
    UnknownKey,
    /// None, but a person has let in whoever has its name.
    ApprovedName,
    /// None.
    Nothing,
}

/// What becomes of an agent that asks for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It gets tasks.
    In,
    /// It is a custom bot: it gets builds that name its key, and no others.
    Custom,
    /// It gets none until a person lets it in.
    Pending,
    /// It is turned away.
    Out,
}

/// Decides about an agent. A name alone never stands for a key: who shows an unknown one under a name that is known waits.
#[must_use]
pub fn admission(door: Door, shown: Shown) -> Admission {
    match (door, shown) {
        (Door::Open, _) | (_, Shown::KnownKey) | (Door::Approval, Shown::ApprovedName) => {
            Admission::In
        }
        (Door::Keys | Door::Approval, Shown::NamedKey) => Admission::Custom,
        (Door::Approval, Shown::UnknownKey | Shown::Nothing) => Admission::Pending,
        (Door::Keys, Shown::UnknownKey | Shown::ApprovedName | Shown::Nothing) => Admission::Out,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_let_in() {
        use Admission::{Custom, In, Out, Pending};
        for (shown, expected) in [
            (Shown::KnownKey, [In, In, In]),
            (Shown::NamedKey, [In, Custom, Custom]),
            (Shown::UnknownKey, [In, Out, Pending]),
            (Shown::ApprovedName, [In, Out, In]),
            (Shown::Nothing, [In, Out, Pending]),
        ] {
            let doors = [Door::Open, Door::Keys, Door::Approval];
            assert_eq!(
                doors.map(|door| admission(door, shown)),
                expected,
                "{shown:?}"
            );
        }
    }
}
