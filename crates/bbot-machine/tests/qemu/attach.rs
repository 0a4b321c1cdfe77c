//! A person looks at a machine: its console, its screen, its last words.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use bbot_machine::machine::{Hypervisor, LAST_WORDS, Machine, MachineEvent};
use bbot_machine::qemu::Qemu;
use bbot_tftp::Event;

use super::support::{PATIENCE, must_skip, prepare, process_of};

/// A console that somebody has attached to.
struct Attached(UnixStream);

impl Attached {
    fn to(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Waits for the word.
    fn hears(&mut self, word: &str) {
        let mut heard = Vec::new();
        let mut chunk = [0; 256];
        while !String::from_utf8_lossy(&heard).contains(word) {
            let length = self.0.read(&mut chunk).unwrap();
            assert!(length > 0, "the console was closed");
            heard.extend_from_slice(&chunk[..length]);
        }
    }

    /// What has come so far, and what comes within a moment.
    fn rest(&mut self) -> usize {
        self.0
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        let mut all = 0;
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = self.0.read(&mut chunk) {
            all += length;
        }
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        all
    }
}

async fn uploaded(machine: &mut dyn Machine, wanted: &str) {
    loop {
        let event = tokio::time::timeout(PATIENCE, machine.next_event()).await;
        match event.unwrap() {
            MachineEvent::Tftp(Event::Uploaded { name, .. }) if name == wanted => return,
            MachineEvent::Tftp(_) => {}
            other => panic!("{other:?}: {}", machine.last_words()),
        }
    }
}

#[tokio::test]
async fn a_console_is_attached_to_again_and_while_suspended() {
    if must_skip() {
        return;
    }
    let script = "tftp -p -r up -l /init 196.254.111.222\n\
                  while :; do echo tick; sleep 1; done > /dev/console";
    let (_folder, spec) = prepare(script, None);
    let mut machine = Qemu::new().start(spec).await.unwrap();
    let console = machine.console().unwrap();
    // From the start on, and nobody need listen.
    uploaded(&mut *machine, "up").await;
    assert_eq!(machine.process(), Some(process_of(&machine.info())));
    let mut first = Attached::to(&console);
    first.hears("tick");
    // Who comes second waits until the first has left.
    let mut second = Attached::to(&console);
    first.hears("tick");
    drop(first);
    second.hears("tick");
    drop(second);

    machine.suspend().await.unwrap();
    let mut third = Attached::to(&console);
    third.rest();
    assert_eq!(third.rest(), 0, "a suspended guest speaks");
    let mut screen = UnixStream::connect(machine.screen().unwrap()).unwrap();
    let mut greeting = [0; 4];
    screen.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB ");
    machine.resume().await.unwrap();
    third.hears("tick");
    // And answers may be given: what is typed reaches the guest.
    std::io::Write::write_all(&mut third.0, b"\n").unwrap();

    let words = machine.last_words();
    assert!(
        words.contains("Linux version") && words.contains("tick"),
        "{words}"
    );
    machine.force_down().await.unwrap();
    assert_eq!(machine.process(), None);
    // They are heard when it is gone, too.
    assert!(machine.last_words().contains("tick"));
    drop(machine);
    assert!(!console.exists());
}

/// A guest that never stops talking fills nothing, and cannot talk to the terminal of who reads it.
#[tokio::test]
async fn last_words_are_bounded_and_fit_to_be_shown() {
    if must_skip() {
        return;
    }
    let script = "(i=0; while [ $i -lt 4000 ]; do echo \"line $i of many that nobody wants to read\"; i=$((i+1)); done\n\
                  printf '\\033]0;title\\007\\033[31mred\\033[0m the end\\n') > /dev/console\n\
                  tftp -p -r up -l /init 196.254.111.222";
    let (_folder, spec) = prepare(script, None);
    let mut machine = Qemu::new().start(spec).await.unwrap();
    uploaded(&mut *machine, "up").await;
    let words = machine.last_words();
    assert!(words.len() <= LAST_WORDS, "{}", words.len());
    assert!(words.len() > LAST_WORDS / 2, "{}", words.len());
    assert!(
        !words.contains('\x1b') && words.contains("red the end"),
        "{}",
        &words[words.len() - 100..]
    );
    assert!(!words.contains("Linux version"));
}
