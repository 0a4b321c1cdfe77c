//! The controllers: which is asked next, and when again.

use std::time::Duration;

use rand::Rng;

use super::api::{Config, ControllerConfig, Kin, Time};
use super::backoff::{Pauses, SILENT, SILENT_OURS, WRONG};
use super::priority::Priority;
use crate::options::{IDLE_PAUSE, IDLE_PAUSE_HELD, IDLE_PAUSE_OURS};

/// A controller as far as it is known.
#[derive(Debug, Clone)]
pub(super) struct Controller {
    pub(super) url: String,
    pub(super) priority: Priority,
    pub(super) kin: Kin,
    /// What is wrong with it, so that it is told once.
    pub(super) trouble: Option<String>,
    /// How often in a row something was.
    pub(super) failures: u32,
    /// When it can be asked again.
    pub(super) next: Time,
}

/// What a controller did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// No answer.
    Silent,
    /// An answer, or a task, of no use.
    Wrong,
}

/// All controllers.
#[derive(Debug, Clone)]
pub(super) struct Controllers {
    pub(super) all: Vec<Controller>,
    /// Who gave the last task: it goes behind its equals, so that one with much work does not starve them.
    gave: Option<String>,
}

impl Controllers {
    pub(super) fn new(config: &[ControllerConfig]) -> Self {
        let mut controllers = Self {
            all: Vec::new(),
            gave: None,
        };
        controllers.reload(config, Time::ZERO);
        controllers
    }

    /// Those of a new configuration. Of those that stay their kind is remembered; each can be asked now: it
    /// may be the reason for the new configuration.
    pub(super) fn reload(&mut self, config: &[ControllerConfig], now: Time) {
        let before = std::mem::take(&mut self.all);
        for new in config {
            if self.get(&new.url).is_some() {
                continue;
            }
            let known = before.iter().find(|c| c.url == new.url);
            self.all.push(Controller {
                url: new.url.clone(),
                priority: new.priority,
                kin: known.map_or(Kin::Stranger, |c| c.kin),
                trouble: known.and_then(|c| c.trouble.clone()),
                failures: 0,
                next: now,
            });
        }
    }

    pub(super) fn get(&self, url: &str) -> Option<&Controller> {
        self.all.iter().find(|c| c.url == url)
    }

    pub(super) fn get_mut(&mut self, url: &str) -> Option<&mut Controller> {
        self.all.iter_mut().find(|c| c.url == url)
    }

    /// Whether there is just one, and it is one of ours: it may hold requests, and nobody else waits meanwhile.
    pub(super) fn is_single_of_ours(&self) -> bool {
        matches!(&self.all[..], [only] if only.kin == Kin::Ours)
    }

    /// Those that can be asked now, in the order in which they are to be asked: by preference, equal ones at
    /// random, the one that gave the last task behind its equals.
    pub(super) fn due(&self, now: Time, random: &mut impl Rng) -> Vec<usize> {
        let mut due: Vec<(u16, bool, u32, usize)> = self
            .all
            .iter()
            .enumerate()
            .filter(|(_, c)| c.next <= now)
            .map(|(index, c)| {
                let gave = self.gave.as_ref() == Some(&c.url);
                (
                    u16::MAX - c.priority.preference(),
                    gave,
                    random.r#gen(),
                    index,
                )
            })
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(.., index)| index).collect()
    }

    /// It had no task: when it is asked again. `again`: there is more to offer than when it was asked, at
    /// `asked`.
    pub(super) fn had_nothing(
        &mut self,
        url: &str,
        config: &Config,
        again: bool,
        (asked, now): (Time, Time),
    ) {
        let is_single = self.all.len() == 1;
        if let Some(c) = self.get_mut(url) {
            c.failures = 0;
            let pause = match (config.idle_pause, c.kin) {
                (Some(pause), _) => pause,
                // That it has held the request was the pause.
                (None, Kin::Ours) if is_single => {
                    IDLE_PAUSE_HELD.saturating_sub(now.saturating_sub(asked))
                }
                (None, Kin::Ours) => IDLE_PAUSE_OURS,
                (None, Kin::Stranger) => IDLE_PAUSE,
            };
            let pause = if again { Duration::ZERO } else { pause };
            c.next = now.saturating_add(pause);
        }
    }

    /// It gave a task.
    pub(super) fn gave_task(&mut self, url: &str) {
        self.gave = Some(url.to_owned());
    }

    /// There is more to offer, or a task came: whoever is well can be asked at once.
    pub(super) fn ask_again(&mut self, now: Time) {
        for c in &mut self.all {
            if c.failures == 0 {
                c.next = c.next.min(now);
            }
        }
    }

    /// It does not do what it should. Returns for how long it is left alone, if that is to be told.
    pub(super) fn trouble(
        &mut self,
        url: &str,
        fault: Fault,
        why: &str,
        now: Time,
        random: &mut impl Rng,
    ) -> Option<Duration> {
        let c = self.get_mut(url)?;
        let pauses: Pauses = match (fault, c.kin) {
            (Fault::Silent, Kin::Ours) => SILENT_OURS,
            (Fault::Silent, Kin::Stranger) => SILENT,
            (Fault::Wrong, _) => WRONG,
        };
        // Agents that lost a controller at the same moment do not all come back at the same moment.
        let pause = pauses.after(c.failures).mul_f64(random.gen_range(1.0..1.5));
        c.failures = c.failures.saturating_add(1);
        c.next = now.saturating_add(pause);
        let is_new = c.trouble.as_deref().is_none_or(|told| !is_same(told, why));
        c.trouble = Some(why.to_owned());
        is_new.then_some(pause)
    }

    /// It answered as it should. Returns whether it had not done so before.
    pub(super) fn well(&mut self, url: &str) -> bool {
        self.get_mut(url)
            .is_some_and(|c| c.trouble.take().is_some())
    }
}

/// Whether two troubles are the same but for numbers, such as what time it is.
fn is_same(told: &str, why: &str) -> bool {
    let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
    words(told) == words(why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::super::tests::{config, controllers};
    use super::*;

    const NOW: Time = Time::from_secs(100);

    fn order(all: &Controllers, random: &mut StdRng) -> Vec<String> {
        all.due(NOW, random)
            .into_iter()
            .map(|i| all.all[i].url.clone())
            .collect()
    }

    #[test]
    fn the_preferred_first_and_equal_ones_at_random() {
        let all = Controllers::new(&controllers(&["0001=b", "0002=a", "0001=c", "0001=d", "e"]));
        let mut random = StdRng::seed_from_u64(1);
        let seen: BTreeSet<_> = (0..200).map(|_| order(&all, &mut random)).collect();
        assert_eq!(seen.len(), 6, "b, c and d in each order");
        assert!(seen.iter().all(|o| o[0] == "a" && o[4] == "e"));
        let (mut one, mut two) = (StdRng::seed_from_u64(7), StdRng::seed_from_u64(7));
        for _ in 0..20 {
            assert_eq!(order(&all, &mut one), order(&all, &mut two));
        }
    }

    #[test]
    fn who_gave_the_last_task_goes_behind_its_equals() {
        let mut all = Controllers::new(&controllers(&["a", "b", "0001=c"]));
        let mut random = StdRng::seed_from_u64(1);
        all.gave_task("b");
        for _ in 0..20 {
            assert_eq!(order(&all, &mut random), ["c", "a", "b"]);
        }
    }

    #[test]
    fn pauses_are_by_whose_controllers_they_are() {
        let pause = |urls: &[&str], kin, idle_pause, again, held| {
            let mut all = Controllers::new(&controllers(urls));
            all.all[0].kin = kin;
            let config = Config {
                idle_pause,
                ..config(1)
            };
            all.had_nothing(
                "a",
                &config,
                again,
                (NOW - Duration::from_millis(held), NOW),
            );
            (all.all[0].next - NOW).as_millis()
        };
        let seven = Some(Duration::from_secs(7));
        for (urls, kin, given, again, held, expected) in [
            (&["a"][..], Kin::Ours, None, false, 0, 1000),
            (&["a"], Kin::Ours, None, false, 300, 700),
            (&["a"], Kin::Ours, None, false, 20_000, 0),
            (&["a"], Kin::Stranger, None, false, 20_000, 60_000),
            (&["a", "b"], Kin::Ours, None, false, 300, 5000),
            (&["a", "b"], Kin::Stranger, None, false, 0, 60_000),
            (&["a"], Kin::Stranger, seven, false, 0, 7000),
            (&["a"], Kin::Ours, seven, false, 20_000, 7000),
            (&["a"], Kin::Stranger, None, true, 0, 0),
        ] {
            assert_eq!(
                pause(urls, kin, given, again, held),
                expected,
                "{urls:?} {kin:?} {held}"
            );
        }
    }

    #[test]
    fn trouble_is_told_once_and_its_pauses_grow() {
        let mut all = Controllers::new(&controllers(&["a"]));
        let mut random = StdRng::seed_from_u64(1);
        let mut last = Duration::ZERO;
        for n in 0..12 {
            let told = all.trouble("a", Fault::Silent, "down", NOW, &mut random);
            assert_eq!(told.is_some(), n == 0);
            let pause = all.all[0].next - NOW;
            assert!(
                pause > last || pause >= SILENT.longest,
                "{pause:?} after {last:?}"
            );
            assert!(pause <= SILENT.longest.mul_f64(1.5));
            last = pause;
        }
        // Later it is the same.
        let at = |time: &str| format!("the clock is wrong: it is {time}");
        for (time, is_told) in [("08:31", true), ("08:32", false)] {
            let told = all.trouble("a", Fault::Silent, &at(time), NOW, &mut random);
            assert_eq!(told.is_some(), is_told);
        }
        // What is wrong now is something else.
        assert!(
            all.trouble("a", Fault::Wrong, "rubbish", NOW, &mut random)
                .is_some()
        );
        all.ask_again(NOW);
        assert!(
            all.due(NOW, &mut random).is_empty(),
            "it is still left alone"
        );
        assert!(all.well("a"));
        assert!(!all.well("a"));
        all.had_nothing("a", &config(1), false, (NOW, NOW));
        assert_eq!(all.all[0].failures, 0);
    }

    #[test]
    fn one_that_was_away_for_an_hour_is_asked_soon_after_it_is_back() {
        for (kin, least, most) in [(Kin::Ours, 12_u32, 18_u32), (Kin::Stranger, 60, 90)] {
            let mut all = Controllers::new(&controllers(&["a"]));
            all.all[0].kin = kin;
            let mut random = StdRng::seed_from_u64(1);
            let mut now = Time::ZERO;
            let mut pauses = Vec::new();
            while now < Time::from_secs(60 * 60) {
                all.trouble("a", Fault::Silent, "down", now, &mut random);
                pauses.push(all.all[0].next - now);
                now = all.all[0].next;
            }
            let longest = pauses.iter().max().unwrap().as_secs_f64();
            assert!(
                (f64::from(least)..=f64::from(most)).contains(&longest),
                "{longest}"
            );
            // Nor is it asked all the time meanwhile.
            assert!(
                pauses.len() < usize::try_from(60 * 60 / least).unwrap() + 10,
                "{}",
                pauses.len()
            );
        }
    }

    #[test]
    fn a_new_configuration_keeps_what_is_known() {
        let mut all = Controllers::new(&controllers(&["a", "b"]));
        let mut random = StdRng::seed_from_u64(1);
        all.all[0].kin = Kin::Ours;
        all.trouble("a", Fault::Wrong, "x", NOW, &mut random);
        all.reload(&controllers(&["0001=a", "c", "c"]), NOW);
        assert_eq!(all.all.len(), 2);
        assert_eq!((all.all[0].kin, all.all[0].next), (Kin::Ours, NOW));
        assert_eq!(all.all[0].priority.preference(), 1);
        assert!(all.well("a"), "that it answers again will be told");
    }
}
