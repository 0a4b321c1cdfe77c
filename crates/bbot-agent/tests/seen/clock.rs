//! The wall clock jumps ten years ahead and back while the agent asks and a machine
//! runs: no time-out fires, nothing spins. The clock is that of the agent alone: a
//! library in front of the C library's `clock_gettime`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

const BOUND: Duration = Duration::from_secs(60);

/// Adds ten years to the wall clock while there is a file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *ts) {
    int result = (int)syscall(SYS_clock_gettime, id, ts);
    const char *file = getenv("BBOT_TEST_CLOCK");
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) && file && access(file, F_OK) == 0)
        ts->tv_sec += 315360000;
    return result;
}
int gettimeofday(struct timeval *tv, void *zone) {
    struct timespec ts;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &ts) != 0) return -1;
    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return 0;
}
"#;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A controller that has one task, and counts who asks; results are told.
fn controller() -> (String, Arc<AtomicUsize>, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let (results, received) = channel();
    let (own, count) = (url.clone(), Arc::clone(&asked));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut text = String::new();
            let mut buffer = [0; 4096];
            let length = |text: &str| {
                let (head, body) = text.split_once("\r\n\r\n")?;
                let head = head.to_ascii_lowercase();
                let value = head.split("content-length:").nth(1)?;
                let length: usize = value.lines().next()?.trim().parse().ok()?;
                (body.len() >= length).then_some(())
            };
            while length(&text).is_none() {
                match stream.read(&mut buffer) {
                    Ok(read @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..read])),
                    _ => break,
                }
            }
            let body = if text.starts_with("POST /?build-result") {
                let _ = results.send(text);
                String::new()
            } else if count.fetch_add(1, Ordering::SeqCst) == 0 {
                format!(
                    ": 1\nsession: s/1\nresult-url: {own}?build-result\n:\nname: libfoo\n\
                     version: 1.2\nrepository: http://r.example/1\nmachine: clock\n\
                     target: x86_64-linux-gnu\n"
                )
            } else {
                ": 1\nsession:\n".to_owned()
            };
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/manifest;charset=utf-8\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (url, asked, received)
}

fn shim(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, SHIM).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.unwrap().success());
    // It does what it should, or the tests could not fail.
    let seconds = |file: &Path| {
        let mut date = Command::new("date");
        date.arg("+%s").env("LD_PRELOAD", &library);
        let output = date.env("BBOT_TEST_CLOCK", file).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim().parse::<u64>().unwrap()
    };
    let ahead = seconds(&source) - seconds(Path::new("/nonexistent"));
    assert!(ahead > 315_000_000, "{ahead}");
    library
}

/// The QEMU below a process.
fn machine_of(agent: u32) -> Option<u32> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some((name, rest)) = stat.rsplit_once(')') else {
            continue;
        };
        let parent = rest.split_whitespace().nth(1);
        if name.contains("(qemu-system") && parent == Some(&agent.to_string()) {
            return Some(pid);
        }
    }
    None
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(begin.elapsed() < BOUND, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn host(folder: &Path) -> Vec<String> {
    let machine = folder.join("machines/default/clock");
    let revision = machine.join("clock-1.1");
    fs::create_dir_all(&revision).unwrap();
    let manifest = ": 1\nid: clock-1\nname: clock\nsummary: Waits\ntype: kvm\n";
    fs::write(revision.join("manifest"), manifest).unwrap();
    let disk = fs::File::create(revision.join("disk.img")).unwrap();
    disk.set_len(1 << 20).unwrap();
    std::os::unix::fs::symlink("clock-1.1", machine.join("clock-1")).unwrap();
    let mut arguments = Vec::new();
    for option in ["machines", "tftp", "state"] {
        arguments.push(format!("--{option}"));
        arguments.push(folder.join(option).display().to_string());
    }
    arguments
}

fn agent(folder: &Path, url: &str, more: &[&str]) -> (Killed, PathBuf) {
    let jump = folder.join("jump");
    let child = Command::new(env!("CARGO_BIN_EXE_bbot-agent"))
        .args(host(folder))
        .args(["--fake-bootstrap", "--accel", "tcg", "--ram", "65536"])
        .args(["--idle-pause", "1"])
        .args(more)
        .arg(url)
        .env("LD_PRELOAD", shim(folder))
        .env("BBOT_TEST_CLOCK", &jump)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (Killed(child), jump)
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    // QEMU gives up root for a user who has to come by here.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), open).unwrap();
    folder
}

#[test]
fn no_time_out_fires_when_the_clock_jumps_while_a_machine_runs() {
    if !testkit::program("cc", "cc") || !testkit::program("qemu-system-x86_64", "qemu") {
        return;
    }
    let folder = folder();
    let (url, _, results) = controller();
    // An hour for the guest, which has no system and never asks.
    let more = ["--build-startup", "3600", "--suspend-timeout", "0"];
    let (agent, jump) = agent(folder.path(), &url, &more);
    let machine = until("no machine starts", || machine_of(agent.0.id()));
    for ahead in [true, false] {
        if ahead {
            fs::write(&jump, "").unwrap();
        } else {
            fs::remove_file(&jump).unwrap();
        }
        // A time-out by the wall clock would fire at once; nothing else tells that none does.
        let told = results.recv_timeout(Duration::from_secs(3));
        assert!(told.is_err(), "{told:?}");
        assert_eq!(machine_of(agent.0.id()), Some(machine));
    }
}

#[test]
fn an_idle_agent_goes_on_asking_at_its_pace_when_the_clock_jumps() {
    if !testkit::program("cc", "cc") {
        return;
    }
    let folder = folder();
    let (url, asked, results) = controller();
    let (_agent, jump) = agent(folder.path(), &url, &["--fake-build"]);
    // The one task: told as abort, since nothing is built.
    let result = results.recv_timeout(BOUND).unwrap();
    assert!(result.contains("status: abort"), "{result}");
    let count = || asked.load(Ordering::SeqCst);
    for ahead in [true, false] {
        if ahead {
            fs::write(&jump, "").unwrap();
        } else {
            fs::remove_file(&jump).unwrap();
        }
        let (before, begin) = (count(), Instant::now());
        until("it does not ask any more", || {
            (count() >= before + 3).then_some(())
        });
        let spent = begin.elapsed();
        assert!(spent > Duration::from_millis(1500), "it spins: {spent:?}");
    }
}
