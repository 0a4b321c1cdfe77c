//! The worker's way to its agent: TFTP.

use std::io::{BufWriter, Cursor};
use std::net::SocketAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use bbot_manifest::RunManifest;
use bbot_tftp::Retransmit;
use bbot_tftp::client::{self, Options, Reason};
use bbot_tftp::packet::ErrorCode;

use crate::fresh;

/// Bound of the manifests that an agent gives out, in bytes.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// The largest block of a file, where the link takes it whole: what fits into a jumbo frame of 9000 bytes.
const LARGEST_BLOCK: u16 = 8968;

/// How much of a file is gathered before it is written, in bytes: a toolchain has a hundred thousand blocks and more.
const GATHERED: usize = 128 * 1024;

/// Pause before the agent is asked again for what it does not have yet.
const PAUSE: Duration = Duration::from_millis(500);

/// How often an agent is asked for its run manifest that answers with an error that may pass.
const CHANCES: u32 = 5;

/// The longest pause before an agent is asked again that answered with such an error.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How often a file is asked for that the agent cannot read for now: for a minute.
const FILE_CHANCES: usize = 8;

/// How often a result is offered to an agent that cannot take it for now: for ten minutes. A build that is done is not to be
/// lost since its host was out of room for a while; the agent gives up before that.
const RESULT_CHANCES: usize = 45;

/// The name under which a worker asks what its agent offers, and keeps the answer in the build directory.
pub(crate) const RUN_MANIFEST: &str = "run.manifest";

/// The name under which a worker asks whose machine waits for a task and is not saved, or not once more.
const PREPARED: &str = "prepared.manifest";

/// The task's name on TFTP today, and in the build directory.
pub(crate) const TASK_MANIFEST: &str = "task.manifest";

/// The name of the task as of 2017, and of the result.
const MANIFEST: &str = "manifest";

/// The connection to one agent.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    agent: SocketAddr,
    /// Whether what the agent cannot do for now is worth to wait for.
    is_patient: bool,
}

/// What the agent gave out.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// The run manifest; an agent of the original has none.
    pub(crate) run: Option<Vec<u8>>,
    /// The task manifest, not yet read.
    pub(crate) task: Vec<u8>,
}

/// What became of a result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// The agent has it.
    Taken,
    /// The agent does not want it, and says why.
    Refused(String),
}

impl Channel {
    pub(crate) fn new(agent: SocketAddr) -> Self {
        Self {
            agent,
            is_patient: true,
        }
    }

    /// To one that only stands in for an agent: what does not work at once is given up.
    pub(crate) fn to_stand_in(agent: SocketAddr) -> Self {
        Self {
            agent,
            is_patient: false,
        }
    }

    /// Asks for the run manifest and the task until there is one. A machine that is to be saved is
    /// saved meanwhile, and made fresh when it was restored; one that is prepared ahead waits for
    /// its task. `get_ready` is called each time before it waits for that, and told whether the machine is saved.
    pub(crate) fn ask_ahead(&self, mut get_ready: impl FnMut(bool)) -> Given {
        let mut chances = CHANCES;
        loop {
            if let Some(mut run) = self.ask_run_manifest(&mut chances) {
                if let Some(again) = offered(run.as_deref()).and_then(|run| run.save) {
                    run = self.wait_for_task(&again, &mut get_ready).or(run);
                }
                for name in [TASK_MANIFEST, MANIFEST] {
                    match self.get_bytes(name) {
                        Ok(task) => return Given { run, task },
                        Err(error) => eprintln!("trace: {error}"),
                    }
                }
            }
            thread::sleep(PAUSE);
        }
    }

    /// The same where nothing is made ready.
    pub(crate) fn ask(&self, mut get_ready: impl FnMut()) -> Given {
        self.ask_ahead(|_| get_ready())
    }

    /// Holds the machine still until it was saved and restored: the agent does not answer before.
    /// A restored one may be told to wait once more, until there is a task. One that is only to
    /// wait for its task, a container, is left as it is: its disks, its clock and its entropy are its host's.
    /// None: the agent does not save it after all.
    fn wait_for_task(&self, again: &str, get_ready: &mut dyn FnMut(bool)) -> Option<Vec<u8>> {
        let is_saved = again != PREPARED;
        get_ready(is_saved);
        if is_saved {
            fresh::stop_others();
        }
        let mut again = again.to_owned();
        let run = loop {
            match self.get_bytes(&again) {
                Ok(run) => match offered(Some(&run)).and_then(|run| run.save) {
                    Some(name) => {
                        again = name;
                        get_ready(is_saved);
                        continue;
                    }
                    None => break Some(run),
                },
                Err(error) => {
                    eprintln!("trace: {error}");
                    // One that answers so does not save the machine.
                    if matches!(error.reason, Reason::Peer { .. }) && !passes(&error) {
                        break None;
                    }
                }
            }
            thread::sleep(PAUSE);
        };
        match offered(run.as_deref()).and_then(|run| run.fresh) {
            Some(fresh) => fresh::make(self, &fresh),
            None if is_saved => eprintln!(
                "error: nothing came with which this machine makes its time and entropy its own"
            ),
            None => {}
        }
        if is_saved {
            fresh::go_on();
        }
        run
    }

    /// The run manifest, `Some(None)` when the agent has none; `None` when it did not answer, or with an error that may
    /// pass while there are `chances`.
    fn ask_run_manifest(&self, chances: &mut u32) -> Option<Option<Vec<u8>>> {
        match self.get_bytes(RUN_MANIFEST) {
            Ok(run) => Some(Some(run)),
            Err(error) => {
                eprintln!("trace: {error}");
                let Reason::Peer { code, .. } = error.reason else {
                    return None;
                };
                *chances = chances.saturating_sub(1);
                // Whatever the words are: a server that refuses the name knows nothing of it.
                (*chances == 0 || !may_pass(code)).then_some(None)
            }
        }
    }

    /// Fetches a manifest, or something as small.
    pub(crate) fn get_bytes(&self, name: &str) -> Result<Vec<u8>, client::ClientError> {
        let mut bytes = Vec::new();
        let options = Options {
            limit: MANIFEST_LIMIT,
            ..options()
        };
        client::get(self.agent, name, &mut bytes, &options)?;
        Ok(bytes)
    }

    /// Fetches a file of this size at most.
    pub(crate) fn get_file(&self, name: &str, to: &Path, limit: u64) -> anyhow::Result<()> {
        let options = Options {
            block_size: LARGEST_BLOCK,
            limit,
            ..options()
        };
        let mut pauses = self.pauses(FILE_CHANCES);
        loop {
            let mut file = BufWriter::with_capacity(GATHERED, std::fs::File::create(to)?);
            match client::get(self.agent, name, &mut file, &options) {
                Ok(_) => return Ok(()),
                Err(error) if passes(&error) => match pauses.next() {
                    Some(pause) => {
                        eprintln!("trace: {error}");
                        thread::sleep(pause);
                    }
                    None => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Uploads the result until it is acknowledged or refused: a result is never lost for want of an answer, nor since the
    /// agent cannot take it for a while.
    pub(crate) fn deliver(&self, result: &str) -> Delivery {
        self.deliver_with(result, self.pauses(RESULT_CHANCES))
    }

    fn deliver_with(&self, result: &str, mut pauses: impl Iterator<Item = Duration>) -> Delivery {
        loop {
            let size = Some(result.len() as u64);
            let mut from = Cursor::new(result.as_bytes());
            match client::put(self.agent, MANIFEST, &mut from, size, &options()) {
                Ok(_) => return Delivery::Taken,
                Err(error) => {
                    eprintln!("trace: {error}");
                    let pause = match &error.reason {
                        Reason::Peer { .. } if !passes(&error) => None,
                        Reason::Peer { .. } => pauses.next(),
                        _ => self.is_patient.then_some(PAUSE),
                    };
                    match pause {
                        Some(pause) => thread::sleep(pause),
                        None => return Delivery::Refused(error.to_string()),
                    }
                }
            }
        }
    }

    /// The pauses before this agent is asked again, at most so many.
    fn pauses(&self, count: usize) -> impl Iterator<Item = Duration> + use<> {
        pauses(if self.is_patient { count } else { 0 })
    }

    /// Uploads a log segment. The outer error is for a server that does not want any.
    pub(crate) fn put_segment(&self, number: u64, body: &[u8]) -> Result<(), client::ClientError> {
        let name = format!("log.{number}");
        let size = Some(body.len() as u64);
        client::put(self.agent, &name, &mut Cursor::new(body), size, &options())?;
        Ok(())
    }
}

/// A machine's network is its own.
fn options() -> Options {
    Options {
        retransmit: Retransmit::guest(),
        ..Options::default()
    }
}

/// The pauses before an agent is asked again, so many: growing ones.
fn pauses(count: usize) -> impl Iterator<Item = Duration> {
    let next = |pause: &Duration| Some((*pause * 2).min(LONGEST_PAUSE));
    std::iter::successors(Some(PAUSE), next).take(count)
}

/// Whether a server has answered with an error that may pass.
pub(crate) fn passes(error: &client::ClientError) -> bool {
    matches!(error.reason, Reason::Peer { code, .. } if may_pass(code))
}

/// What an agent offers that has a run manifest; one that cannot be read is told of later.
fn offered(run: Option<&[u8]>) -> Option<RunManifest> {
    run.and_then(|bytes| RunManifest::parse(bytes, RUN_MANIFEST).ok())
}

/// Whether the same request may be granted the next time. A server that gave a transfer up since the machine was not run for
/// a while, that is busy, or whose host is short of something, says no more than "not defined"; one that does not have or want
/// a file has a code for it.
fn may_pass(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Undefined | ErrorCode::UnknownTransfer)
}

/// Reads a run manifest. One that cannot be read counts as none: the build goes on without what it offers.
pub(crate) fn read_run_manifest(bytes: &[u8]) -> Option<RunManifest> {
    match RunManifest::parse(bytes, RUN_MANIFEST) {
        Ok(run) => Some(run),
        Err(error) => {
            eprintln!("{error}");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use bbot_tftp::packet;

    use super::*;

    /// An agent that answers each request with the next of these packets, from the port that was asked.
    fn agent(answers: Vec<Vec<u8>>) -> (Channel, thread::JoinHandle<usize>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let channel = Channel::new(socket.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2000];
            let mut asked = 0;
            for answer in answers {
                let (_, from) = socket.recv_from(&mut buffer).unwrap();
                asked += 1;
                socket.send_to(&answer, from).unwrap();
            }
            asked
        });
        (channel, thread)
    }

    fn busy() -> Vec<u8> {
        packet::error(
            ErrorCode::Undefined,
            "too many transfers at once, try later",
        )
    }

    #[test]
    fn a_busy_agent_gets_the_result_later() {
        // In the end it takes the request, and the only block.
        let answers = vec![
            busy(),
            busy(),
            packet::ack(0).to_vec(),
            packet::ack(1).to_vec(),
        ];
        let (channel, agent) = agent(answers);
        assert_eq!(channel.deliver(": 1\n"), Delivery::Taken);
        assert_eq!(agent.join().unwrap(), 4);
    }

    #[test]
    fn an_agent_that_refuses_is_believed() {
        let refusal = packet::error(ErrorCode::FileExists, "it was uploaded already");
        let (channel, agent) = agent(vec![refusal]);
        assert!(
            matches!(channel.deliver(": 1\n"), Delivery::Refused(why) if why.contains("already"))
        );
        assert_eq!(agent.join().unwrap(), 1);
        let (channel, agent) = self::agent(vec![busy(); 3]);
        let soon = [Duration::ZERO; 2].into_iter();
        assert!(
            matches!(channel.deliver_with(": 1\n", soon), Delivery::Refused(why) if why.contains("later"))
        );
        assert_eq!(agent.join().unwrap(), 3);
    }

    #[test]
    fn pauses_grow_and_come_to_an_end() {
        let seconds: Vec<f64> = pauses(8).map(|pause| pause.as_secs_f64()).collect();
        assert_eq!(seconds, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]);
        let whole: Duration = pauses(RESULT_CHANCES).sum();
        assert!((600..660).contains(&whole.as_secs()), "{whole:?}");
    }

    #[test]
    fn a_busy_agent_is_not_taken_for_one_that_has_no_run_manifest() {
        let missing = packet::error(ErrorCode::NotFound, "there is no such file");
        let (channel, agent) = agent(vec![busy(), missing]);
        let mut chances = CHANCES;
        assert_eq!(channel.ask_run_manifest(&mut chances), None);
        assert_eq!(channel.ask_run_manifest(&mut chances), Some(None));
        assert_eq!(agent.join().unwrap(), 2);
    }
}
