//! `bbot manifest`: the manifest format as JSON and back.

use std::{
    fs,
    io::{Read, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use bbot_manifest::{Introducer, Style, json};
use clap::Subcommand;

use super::Exit;

/// Turn manifests into JSON and back.
#[derive(Debug, Subcommand)]
pub(crate) enum Manifest {
    /// Print a manifest list as JSON: an array of manifests, each an array of [name, value] pairs
    ToJson {
        /// The manifest list [default: standard input]
        file: Option<PathBuf>,
    },
    /// Print the manifest list that such JSON stands for
    FromJson {
        /// The JSON [default: standard input]
        file: Option<PathBuf>,
        /// Write multi-line values as releases before 2021-11 read them
        #[arg(long)]
        old: bool,
        /// Do not fold long lines
        #[arg(long)]
        long_lines: bool,
    },
}

pub(crate) fn run(command: &Manifest) -> Result<Exit> {
    let output = match command {
        Manifest::ToJson { file } => {
            let (input, name) = read(file.as_ref())?;
            match bbot_manifest::parse(&input) {
                Ok(list) => json::to_json(&list),
                Err(error) => {
                    // The position comes first, as compilers have it, so that editors find it.
                    eprintln!("{}", error.in_source(&name));
                    return Ok(Exit::Failed);
                }
            }
        }
        Manifest::FromJson {
            file,
            old,
            long_lines,
        } => {
            let (input, name) = read(file.as_ref())?;
            let text = String::from_utf8(input).with_context(|| format!("{name} is not UTF-8"))?;
            let list = match json::from_json(&text) {
                Ok(list) => list,
                Err(error) => {
                    eprintln!("{name}:{error}");
                    return Ok(Exit::Failed);
                }
            };
            let style = Style {
                introducer: if *old {
                    Introducer::Old
                } else {
                    Introducer::New
                },
                long_lines: *long_lines,
            };
            bbot_manifest::serialize(&list, style)
                .with_context(|| format!("{name} cannot be written as a manifest"))?
        }
    };
    let mut out = std::io::stdout().lock();
    out.write_all(output.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write the output")?;
    Ok(Exit::Done)
}

fn read(file: Option<&PathBuf>) -> Result<(Vec<u8>, String)> {
    match file {
        Some(path) if path.as_os_str() != "-" => {
            let name = path.display().to_string();
            Ok((
                fs::read(path).with_context(|| format!("cannot read {name}"))?,
                name,
            ))
        }
        _ => {
            let mut input = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut input)
                .context("cannot read standard input")?;
            Ok((input, "<stdin>".to_string()))
        }
    }
}
