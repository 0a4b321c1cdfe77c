//! PostgreSQL: hand-outs that come while others are on their way are handed out together, in one transaction.
//!
//! Going to and fro costs more than what is done there, and each commit a sync of the disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

use super::StoreError;
use super::ending::Ending;
use super::hand_out::{self, DOING, Handed, Owned};
use super::line::Line;

/// So many wait here; more wait outside.
const WAITING: usize = 1024;

/// So many go together at most: the first of them waits for the last.
const GROUP: usize = 64;

/// So many groups are on their way at once: while one waits for the disk, another is worked at.
const LINES: usize = 4;

/// A group that is under way for longer is held up by something, and holds up no other.
const HELD_UP: Duration = Duration::from_millis(50);

/// Of a group whose transaction somebody held up, so many are held up by themselves: then the others are asked to come again.
const CONTENDED: usize = 3;

/// One to be handed out, and who waits for it.
struct Job {
    new: Owned,
    answer: oneshot::Sender<Handed>,
}

/// The way to those who hand out. Clones lead to the same.
#[derive(Debug, Clone)]
pub(super) struct Together {
    jobs: mpsc::Sender<Job>,
    ending: Ending,
}

impl Together {
    /// Begins to hand out.
    pub(super) fn start(url: &str) -> Self {
        let (jobs, receiver) = mpsc::channel(WAITING);
        let end = Arc::new(Notify::new());
        let task = tokio::spawn(run(receiver, url.to_owned(), Arc::clone(&end)));
        Self {
            jobs,
            ending: Ending::of(task, end),
        }
    }

    /// Hands one out. What was begun is finished, whether anybody still waits for it or not.
    pub(super) async fn lease(&self, new: Owned) -> Handed {
        let closed = || StoreError::Closed { doing: DOING };
        let (answer, handed) = oneshot::channel();
        let job = Job { new, answer };
        self.jobs.send(job).await.map_err(|_| closed())?;
        handed.await.map_err(|_| closed())?
    }

    /// Does what was asked for, and ends.
    pub(super) async fn close(&self) {
        self.ending.close().await;
    }
}

/// Whether a group of so many begins while groups of these sizes are under way. A smaller one would keep a line from those who come next, and
/// soon all would go one by one.
fn begins(waiting: usize, mut under_way: impl Iterator<Item = usize>) -> bool {
    waiting > 0 && under_way.all(|size| size <= waiting)
}

async fn run(mut jobs: mpsc::Receiver<Job>, url: String, end: Arc<Notify>) {
    let mut free: Vec<Line> = (0..LINES).map(|_| Line::to(&url)).collect();
    let mut under_way = JoinSet::new();
    // How large they are, and until when they count.
    let mut counting: HashMap<task::Id, (usize, Instant)> = HashMap::new();
    let mut waiting: Vec<Job> = Vec::new();
    let mut is_open = true;
    loop {
        let now = Instant::now();
        counting.retain(|_, (_, until)| now < *until);
        // Nothing is handed out for whoever has gone away before it was begun.
        waiting.retain(|job| !job.answer.is_closed());
        while begins(waiting.len(), counting.values().map(|(size, _)| *size))
            && let Some(mut line) = free.pop()
        {
            let group = std::mem::take(&mut waiting);
            let size = group.len();
            let begun = under_way.spawn(async move {
                hand_out(&mut line, group).await;
                line
            });
            counting.insert(begun.id(), (size, now + HELD_UP));
        }
        let room = GROUP - waiting.len();
        if !is_open && waiting.is_empty() && under_way.is_empty() {
            return;
        }
        let next = counting.values().map(|(_, until)| *until).min();
        tokio::select! {
            more = jobs.recv_many(&mut waiting, room), if is_open && room > 0 => {
                is_open = more > 0;
            }
            Some(done) = under_way.join_next_with_id() => {
                let (id, line) = done.unwrap_or_else(|e| (e.id(), Line::to(&url)));
                counting.remove(&id);
                free.push(line);
            }
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() && !waiting.is_empty() => {}
            () = end.notified(), if is_open => jobs.close(),
        }
    }
}

async fn hand_out(line: &mut Line, group: Vec<Job>) {
    let (all, answers): (Vec<Owned>, Vec<oneshot::Sender<Handed>>) =
        group.into_iter().map(|job| (job.new, job.answer)).unzip();
    let all: Arc<[Owned]> = all.into();
    match together(line, Arc::clone(&all)).await {
        Ok(handed) => {
            for (handed, answer) in handed.into_iter().zip(answers) {
                // Whoever does not wait any more does not want to know.
                let _ = answer.send(handed);
            }
        }
        // None of them is at fault, or there is one.
        Err(e) if e.is_passing() && (!e.is_contended() || answers.len() == 1) => fail(answers, e),
        // Whichever it was harms no other.
        Err(_) => {
            let mut contended = 0;
            let mut each = all.iter().zip(answers);
            while let Some((new, answer)) = each.next() {
                if answer.is_closed() {
                    continue;
                }
                let handed = together(line, Arc::from([new.clone()])).await;
                contended += usize::from(handed.as_ref().is_err_and(StoreError::is_contended));
                match handed {
                    Err(e) if e.is_passing() && (!e.is_contended() || contended == CONTENDED) => {
                        let left = each.map(|(_, answer)| answer);
                        return fail(std::iter::once(answer).chain(left), e);
                    }
                    handed => {
                        let one = handed.and_then(|mut one| one.pop().unwrap_or(Ok(None)));
                        let _ = answer.send(one);
                    }
                }
            }
        }
    }
}

/// Tells all of these that nothing could be kept.
fn fail(answers: impl IntoIterator<Item = oneshot::Sender<Handed>>, error: StoreError) {
    let source = Arc::new(error);
    for answer in answers {
        let source = Arc::clone(&source);
        let _ = answer.send(Err(StoreError::NotKept { source }));
    }
}

async fn together(line: &mut Line, all: Arc<[Owned]>) -> Result<Vec<Handed>, StoreError> {
    line.write(DOING, hand_out::begin(&all), |tx| {
        Box::pin(async move { hand_out::all(tx, &all).await })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_begins_that_is_as_large_as_those_under_way() {
        for (waiting, under_way, expected) in [
            (0, &[][..], false),
            (0, &[1], false),
            (1, &[], true),
            (1, &[1, 1], true),
            (1, &[2], false),
            (6, &[2, 7], false),
            (7, &[2, 7], true),
        ] {
            let begins = begins(waiting, under_way.iter().copied());
            assert_eq!(begins, expected, "{waiting} {under_way:?}");
        }
    }
}
