//! One GET or PUT by our own client, for the benchmark.

use std::fs::File;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use bbot_tftp::client::{self, Options};

const USAGE: &str = "usage: transfer get|put --server ADDRESS:PORT --name NAME --file FILE \
                     [--blksize BYTES] [--windowsize BLOCKS]";

/// Gathers blocks, so that writing is not what is measured.
const BUFFER: usize = 128 * 1024;

struct Arguments {
    put: bool,
    server: SocketAddr,
    name: String,
    file: PathBuf,
    options: Options,
}

fn arguments() -> Result<Arguments, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut way, mut server, mut name, mut file) = (None, None, None, None);
    let mut options = Options {
        // What is asked for is what is measured.
        in_one_piece: false,
        ..Options::default()
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Value(word) if way.is_none() => way = Some(word.string()?),
            Long("server") => server = Some(parser.value()?.parse()?),
            Long("name") => name = Some(parser.value()?.string()?),
            Long("file") => file = Some(PathBuf::from(parser.value()?)),
            Long("blksize") => options.block_size = parser.value()?.parse()?,
            Long("windowsize") => options.window = parser.value()?.parse()?,
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    let put = match way.as_deref() {
        Some("get") => false,
        Some("put") => true,
        _ => return Err("neither get nor put".into()),
    };
    Ok(Arguments {
        put,
        server: server.ok_or("--server is missing")?,
        name: name.ok_or("--name is missing")?,
        file: file.ok_or("--file is missing")?,
        options,
    })
}

fn transfer(arguments: &Arguments) -> Result<u64, Box<dyn std::error::Error>> {
    let Arguments {
        put,
        server,
        name,
        file,
        options,
    } = arguments;
    if *put {
        let mut from = File::open(file)?;
        let size = from.metadata()?.len();
        Ok(client::put(*server, name, &mut from, Some(size), options)?)
    } else {
        let mut to = BufWriter::with_capacity(BUFFER, File::create(file)?);
        Ok(client::get(*server, name, &mut to, options)?)
    }
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("transfer: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match transfer(&arguments) {
        Ok(bytes) => {
            println!("{bytes} bytes");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("transfer: {error}");
            ExitCode::FAILURE
        }
    }
}
