//! Who is told when a build changes: those who follow its log.

use tokio::sync::watch;

/// So many groups of builds are told apart.
const GROUPS: usize = 64;

/// Counts up, for each group of builds, whenever one of it changes. A follower looks again when one of its group does,
/// which costs little; with one count for all, each change would make all followers look.
#[derive(Debug)]
pub(super) struct Changes([watch::Sender<u64>; GROUPS]);

impl Default for Changes {
    fn default() -> Self {
        Self(std::array::from_fn(|_| watch::Sender::new(0)))
    }
}

impl Changes {
    fn of(&self, build: i64) -> &watch::Sender<u64> {
        let group = build.rem_euclid(64);
        &self.0[usize::try_from(group).unwrap_or(0) % GROUPS]
    }

    /// Tells those who follow this build.
    pub(super) fn tell(&self, build: i64) {
        self.of(build).send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Tells all.
    pub(super) fn tell_all(&self) {
        for group in &self.0 {
            group.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// What is told about this build, among others.
    pub(super) fn subscribe(&self, build: i64) -> watch::Receiver<u64> {
        self.of(build).subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_follows_another_build_is_left_alone() {
        let changes = Changes::default();
        let (mine, other) = (changes.subscribe(7), changes.subscribe(8));
        changes.tell(7);
        assert!(mine.has_changed().unwrap());
        assert!(!other.has_changed().unwrap());
        changes.tell(i64::MAX);
        changes.tell(-1);
        changes.tell_all();
        assert!(other.has_changed().unwrap());
    }
}
