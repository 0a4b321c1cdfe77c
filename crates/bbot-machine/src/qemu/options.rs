//! A machine's own `options`: what stands in place of the default devices.
//!
//! The list goes to QEMU as it is, but for these places that only the run can
//! fill in:
//!
//! - `mac=?` becomes the address of the machine's card;
//! - a `-netdev` with `ifname=?` is the wire. The original puts the name of a tap
//!   there; here the whole net device becomes the wire's, or that of a tap which the
//!   agent has opened, with the same `id`, and what is said of the tap (`script` and
//!   so on) is dropped;
//! - a file of the machine's directory (`file=disk.img`) is opened by the agent
//!   and handed over as a descriptor, so that QEMU needs no right on any folder.

use super::command::CardEnd;
use crate::mac::Mac;

/// Options whose whole argument is a file.
const FILE_OPTIONS: [&str; 9] = [
    "-hda", "-hdb", "-hdc", "-hdd", "-cdrom", "-fda", "-fdb", "-pflash", "-sd",
];

/// What only the run can fill in.
pub struct Filling<'a> {
    /// For `mac=?`.
    pub mac: Mac,
    /// Where the machine's card ends.
    pub card: CardEnd,
    /// Whether the machine's directory has a regular file of this name.
    pub has_file: &'a dyn Fn(&str) -> bool,
}

impl std::fmt::Debug for Filling<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filling")
            .field("mac", &self.mac)
            .field("card", &self.card)
            .finish_non_exhaustive()
    }
}

/// Options with everything filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filled {
    /// For QEMU.
    pub arguments: Vec<String>,
    /// The files to hand over: the first is descriptor set 1, and so on.
    pub files: Vec<String>,
}

/// Why options cannot be used. The text says what and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No net device is the wire.
    #[error(
        "its options have no network card for the agent: add -netdev tap,id=net0,ifname=? and a \
         device for it with mac=?"
    )]
    NoWire,
    /// More than one net device is the wire.
    #[error("its options have more than one ifname=?: only one network card can be the agent's")]
    TwoWires,
    /// The net device that is the wire has no id.
    #[error("its option '{0}' has no id=: the card's device needs one to refer to")]
    NoId(String),
    /// `ifname=?` is not in a `-netdev`.
    #[error("its option '{0}' has ifname=? outside of -netdev: write it as -netdev and -device")]
    Misplaced(String),
}

/// Fills in what only the run knows.
///
/// # Errors
///
/// When the agent could not be reached from a machine with these options.
pub fn fill(options: &[String], filling: &Filling<'_>) -> Result<Filled, OptionsError> {
    let mut filled = Filled::default();
    let mut wires = 0;
    let mut before = "";
    for option in options {
        let argument = if split(option).iter().any(|part| part == "ifname=?") {
            if before != "-netdev" {
                return Err(OptionsError::Misplaced(option.clone()));
            }
            wires += 1;
            wire(option, filling.card)?
        } else if FILE_OPTIONS.contains(&before) && (filling.has_file)(option) {
            hand_over(&mut filled.files, option)
        } else {
            let parts: Vec<String> = split(option)
                .into_iter()
                .map(|part| fill_part(part, filling, &mut filled.files))
                .collect();
            parts.join(",")
        };
        filled.arguments.push(argument);
        before = option;
    }
    match wires {
        0 => Err(OptionsError::NoWire),
        1 => Ok(filled),
        _ => Err(OptionsError::TwoWires),
    }
}

/// The net device that is the wire.
fn wire(option: &str, card: CardEnd) -> Result<String, OptionsError> {
    let parts = split(option);
    let id = parts
        .iter()
        .find_map(|part| part.strip_prefix("id="))
        .ok_or_else(|| OptionsError::NoId(option.to_owned()))?;
    Ok(card.netdev(id))
}

fn fill_part(part: String, filling: &Filling<'_>, files: &mut Vec<String>) -> String {
    if part == "mac=?" {
        return format!("mac={}", filling.mac);
    }
    if let Some((name, value)) = part.split_once('=')
        && (name == "file" || name == "filename" || name.ends_with(".filename"))
        && (filling.has_file)(&value.replace(",,", ","))
    {
        return format!("{name}={}", hand_over(files, &value.replace(",,", ",")));
    }
    part
}

/// The name under which QEMU finds a file that is handed over.
fn hand_over(files: &mut Vec<String>, name: &str) -> String {
    let index = files
        .iter()
        .position(|file| file == name)
        .unwrap_or_else(|| {
            files.push(name.to_owned());
            files.len() - 1
        });
    format!("/dev/fdset/{}", index + 1)
}

/// Takes a list apart at its commas; a doubled one is part of a value.
fn split(option: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = option;
    while let Some(at) = rest.find(',') {
        let (head, tail) = rest.split_at(at);
        let doubled = tail.starts_with(",,");
        if let Some(part) = parts.last_mut() {
            part.push_str(head);
            if doubled {
                part.push_str(",,");
            }
        }
        if !doubled {
            parts.push(String::new());
        }
        rest = &tail[if doubled { 2 } else { 1 }..];
    }
    if let Some(part) = parts.last_mut() {
        part.push_str(rest);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill_list(list: &str) -> Result<Filled, OptionsError> {
        let options = bbot_manifest::quoting::split(list).unwrap();
        let filling = Filling {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            card: CardEnd::Wire(7),
            has_file: &|name| name == "disk.img" || name == "a,b.img",
        };
        fill(&options, &filling)
    }

    #[test]
    fn the_run_is_filled_in() {
        let cases = [
            (
                "-netdev tap,id=net0,script=no,ifname=? -device e1000,netdev=net0,mac=? \
                 -drive if=ide,format=raw,file=disk.img",
                "-netdev dgram,id=net0,local.type=fd,local.str=7 \
                 -device e1000,netdev=net0,mac=02:00:00:00:00:01 \
                 -drive if=ide,format=raw,file=/dev/fdset/1",
                &["disk.img"][..],
            ),
            (
                "-netdev ifname=?,id=n,type=tap -hda disk.img -drive 'file=a,,b.img,if=none' \
                 -blockdev driver=file,node-name=x,filename=disk.img -drive file=/elsewhere.img",
                "-netdev dgram,id=n,local.type=fd,local.str=7 -hda /dev/fdset/1 \
                 -drive file=/dev/fdset/2,if=none \
                 -blockdev driver=file,node-name=x,filename=/dev/fdset/1 \
                 -drive file=/elsewhere.img",
                &["disk.img", "a,b.img"],
            ),
        ];
        for (options, arguments, files) in cases {
            let filled = fill_list(options).unwrap();
            assert_eq!(filled.arguments.join(" "), arguments);
            assert_eq!(filled.files, files);
        }
    }

    #[test]
    fn without_a_wire_there_is_an_error() {
        for (options, error) in [
            ("-hda disk.img", OptionsError::NoWire),
            ("", OptionsError::NoWire),
            (
                "-netdev tap,id=a,ifname=? -netdev tap,id=b,ifname=?",
                OptionsError::TwoWires,
            ),
            (
                "-netdev tap,ifname=?",
                OptionsError::NoId("tap,ifname=?".to_owned()),
            ),
            (
                "-nic tap,ifname=?,mac=?",
                OptionsError::Misplaced("tap,ifname=?,mac=?".to_owned()),
            ),
        ] {
            assert_eq!(fill_list(options).unwrap_err(), error, "{options}");
        }
    }

    proptest! {
        #[test]
        fn taking_apart_loses_nothing(option in "[a,=]{0,12}") {
            prop_assert_eq!(split(&option).join(","), option);
        }
    }
}
