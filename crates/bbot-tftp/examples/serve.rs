//! The TFTP server alone, over a real UDP socket.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;

use bbot_tftp::udp::{self, Stop};
use bbot_tftp::{Event, Limits, Root};

const USAGE: &str = "usage: serve --root DIR --listen ADDRESS:PORT [--writable]";

/// The most that an upload may bring: RFC 1350 has no word for more, and disks have an end.
const UPLOAD_LIMIT: u64 = 16 << 30;

struct Arguments {
    root: PathBuf,
    listen: SocketAddr,
    writable: bool,
}

fn arguments() -> Result<Arguments, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut root, mut listen, mut writable) = (None, None, false);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("root") => root = Some(PathBuf::from(parser.value()?)),
            Long("listen") => listen = Some(parser.value()?.parse()?),
            Long("writable") => writable = true,
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    let root = root.ok_or("--root is missing")?;
    let listen = listen.ok_or("--listen is missing")?;
    Ok(Arguments {
        root,
        listen,
        writable,
    })
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("serve: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Arguments {
        root: folder,
        listen,
        writable,
    } = arguments;
    if !folder.is_dir() {
        eprintln!("serve: --root {}: not a directory", folder.display());
        return ExitCode::FAILURE;
    }
    let socket = match UdpSocket::bind(listen) {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("serve: cannot listen on {listen}: {error}");
            return ExitCode::FAILURE;
        }
    };
    match socket.local_addr() {
        Ok(address) => println!("listening on {address}"),
        Err(error) => eprintln!("serve: {error}"),
    }
    let mut root = Root::new().get_folder(&folder);
    if writable {
        root = root.put_any(&folder, UPLOAD_LIMIT);
    }
    let tell = |event: Event| match event {
        Event::Requested { .. } | Event::Held { .. } => {}
        Event::Fetched { name, bytes } => println!("{name}: {bytes} bytes fetched"),
        Event::Uploaded { name, bytes, .. } => println!("{name}: {bytes} bytes uploaded"),
        Event::Failed { name, reason } => println!("{name}: {reason}"),
    };
    match udp::serve(socket, &root, &Limits::default(), &Stop::new(), &tell) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}
