//! The machines that an agent keeps for a person: attaching to them, letting them go on,
//! ending them.

use std::{
    io::{self, IsTerminal, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, bail};
use bbot_agent::status::{Attachment, Place, Request};
use clap::Args;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use super::{
    Exit,
    agent::{self, Reach},
};
use crate::home::Home;

/// Ctrl-]: leaves a console, as with telnet.
const LEAVE: u8 = 0x1d;

/// Attach to the console or screen of a suspended machine; open a shell in a container.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// Its id, or its machine's name
    #[arg(value_name = "ID|MACHINE")]
    id: String,
    /// Its screen instead of its console: for a VNC viewer on this host, until Ctrl-C. Everybody
    /// on this host can connect meanwhile
    #[arg(long)]
    screen: bool,
    /// Let the machine go on first: a stopped one shows nothing new and takes no input
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Let a suspended machine go on, so that one can work in it.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Its id, or its machine's name
    #[arg(value_name = "ID|MACHINE")]
    id: String,
    #[command(flatten)]
    reach: Reach,
}

/// End a suspended machine.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Its id, or its machine's name
    #[arg(value_name = "ID|MACHINE")]
    id: String,
    #[command(flatten)]
    reach: Reach,
}

/// Lists them.
pub(crate) fn list(reach: &Reach, json: bool, home: &Home) -> Result<Exit> {
    let status = reach.connect(home)?.status()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status.suspended)?);
    } else if status.suspended.is_empty() {
        eprintln!("the agent keeps no suspended machine");
    } else {
        agent::suspended(&status.suspended, status.uptime).print()?;
    }
    Ok(Exit::Done)
}

pub(crate) fn resume(options: Resume, home: &Home) -> Result<Exit> {
    let id = options.id;
    let request = Request::SuspendedResume { id: id.clone() };
    options.reach.connect(home)?.tell(&request)?;
    eprintln!("{id} goes on");
    Ok(Exit::Done)
}

pub(crate) fn kill(options: Kill, home: &Home) -> Result<Exit> {
    let id = options.id;
    let request = Request::SuspendedKill { id: id.clone() };
    options.reach.connect(home)?.tell(&request)?;
    eprintln!("{id} is ended");
    Ok(Exit::Done)
}

pub(crate) fn attach(options: &Attach, home: &Home) -> Result<Exit> {
    let mut client = options.reach.connect(home)?;
    let id = &options.id;
    let reach = client.attach(id)?;
    if options.resume {
        client.tell(&Request::SuspendedResume { id: id.clone() })?;
    }
    drop(client);
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")
    };
    match wanted(&reach, options.screen)? {
        Wanted::Console(path) => runtime()?.block_on(console(&path, id, options.resume))?,
        Wanted::Screen(path) => runtime()?.block_on(screen(&path, id))?,
        Wanted::Command(program, arguments) => {
            // Only comes back when it fails.
            let error = Command::new(&program).args(arguments).exec();
            return Err(error).with_context(|| format!("cannot run {program}"));
        }
    }
    Ok(Exit::Done)
}

#[derive(Debug, PartialEq)]
enum Wanted {
    Console(PathBuf),
    Screen(PathBuf),
    Command(String, Vec<String>),
}

/// How the machine is reached. Where there is no such way, what it tells of itself helps.
fn wanted(reach: &Attachment, screen: bool) -> Result<Wanted> {
    if screen {
        return match &reach.screen {
            Some(path) => Ok(Wanted::Screen(path.clone())),
            None => bail!("it has no screen\n{}", reach.info),
        };
    }
    // A container has both, and its console takes no input.
    match (reach.command.as_deref(), &reach.console) {
        (Some([program, arguments @ ..]), _) => {
            Ok(Wanted::Command(program.clone(), arguments.to_vec()))
        }
        (_, Some(path)) => Ok(Wanted::Console(path.clone())),
        (_, None) => bail!("it has no console\n{}", reach.info),
    }
}

/// A terminal that passes on what is typed as it is; restored when dropped.
struct Raw(Option<Termios>);

impl Raw {
    /// Nothing happens where standard input is no terminal.
    fn new() -> Result<Raw> {
        if !io::stdin().is_terminal() {
            return Ok(Raw(None));
        }
        let before = tcgetattr(io::stdin()).context("cannot ask how the terminal is set")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("cannot set the terminal")?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Best effort: who has closed the terminal does not need it any more.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// How a look at the console has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    ByKey,
    BySignal,
    Closed,
}

async fn console(path: &Path, id: &str, resumed: bool) -> Result<()> {
    let stream = connect(path)?;
    eprintln!("attached to the console of {id}; Ctrl-] leaves");
    if !resumed {
        eprintln!(
            "a machine that is stopped takes no input: `bbot machine resume {id}` lets it go on"
        );
    }
    let raw = Raw::new()?;
    let left = exchange(stream).await;
    drop(raw);
    match left.with_context(|| format!("the console {} failed", path.display()))? {
        Left::ByKey => eprintln!("\nleft; the machine stays"),
        Left::BySignal => eprintln!("\nended by a signal; the machine stays"),
        Left::Closed => eprintln!("\nthe machine has ended"),
    }
    Ok(())
}

/// Passes bytes both ways until the person or the machine is done.
async fn exchange(stream: UnixStream) -> io::Result<Left> {
    let (mut reader, mut writer) = stream.into_split();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut typed = typed();
    let mut buffer = vec![0; 8192];
    let mut open = true;
    loop {
        tokio::select! {
            read = reader.read(&mut buffer) => match read? {
                0 => return Ok(Left::Closed),
                length => {
                    let mut out = io::stdout().lock();
                    out.write_all(&buffer[..length])?;
                    out.flush()?;
                }
            },
            bytes = typed.recv(), if open => match bytes {
                Some(bytes) => {
                    let end = bytes.iter().position(|&byte| byte == LEAVE);
                    writer.write_all(&bytes[..end.unwrap_or(bytes.len())]).await?;
                    if end.is_some() {
                        return Ok(Left::ByKey);
                    }
                }
                // Standard input is at its end: the machine may still have something to say.
                None => open = false,
            },
            _ = interrupt.recv() => return Ok(Left::BySignal),
            _ = terminate.recv() => return Ok(Left::BySignal),
            _ = hangup.recv() => return Ok(Left::BySignal),
        }
    }
}

/// What comes on standard input. The thread reads until the process ends: nothing else can be
/// waited for beside a terminal without changing it for everybody who has it open.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn screen(path: &Path, id: &str) -> Result<()> {
    // Fails now rather than in the viewer.
    drop(connect(path)?);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("cannot listen on the loopback address")?;
    println!("vncviewer {}", listener.local_addr()?);
    io::stdout().flush()?;
    eprintln!("the screen of {id} is there until Ctrl-C");
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((viewer, _)) => {
                    let path = path.to_path_buf();
                    tokio::spawn(async move {
                        if let Err(error) = view(viewer, &path).await {
                            eprintln!("a viewer has left: {error:#}");
                        }
                    });
                }
                Err(error) => return Err(error).context("cannot wait for a viewer"),
            },
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
    }
}

async fn view(mut viewer: TcpStream, path: &Path) -> Result<()> {
    let mut screen = connect(path)?;
    copy_bidirectional(&mut viewer, &mut screen).await?;
    Ok(())
}

fn connect(path: &Path) -> Result<UnixStream> {
    let connected = Place(path.to_path_buf()).connect().and_then(|stream| {
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    });
    connected.with_context(|| {
        format!(
            "cannot connect to {}: the machine may have ended, or it is another user's",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_machine_is_reached_its_way() {
        let machine = Attachment {
            console: Some("/c".into()),
            screen: Some("/s".into()),
            command: None,
            info: "machine m".to_string(),
        };
        let container = Attachment {
            console: Some("/c".into()),
            command: Some(vec!["nsenter".to_string(), "--all".to_string()]),
            info: "container c".to_string(),
            ..Attachment::default()
        };
        assert_eq!(
            wanted(&machine, false).unwrap(),
            Wanted::Console("/c".into())
        );
        assert_eq!(wanted(&machine, true).unwrap(), Wanted::Screen("/s".into()));
        assert_eq!(
            wanted(&container, false).unwrap(),
            Wanted::Command("nsenter".to_string(), vec!["--all".to_string()])
        );
        let error = wanted(&container, true).unwrap_err().to_string();
        assert_eq!(error, "it has no screen\ncontainer c");
        let empty = Attachment {
            command: Some(vec![]),
            ..Attachment::default()
        };
        assert!(wanted(&empty, false).is_err());
    }
}
