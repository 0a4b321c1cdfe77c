//! The packets of TFTP, to and from bytes (RFC 1350 section 5, RFC 2347).

use std::fmt;

/// A code in an ERROR packet (RFC 1350 appendix I, RFC 2347).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// 0: see the message. From a server of ours: it is busy, or short of something;
    /// what is asked for may be granted later.
    Undefined,
    /// 1: there is no such file.
    NotFound,
    /// 2: the name may not be read, or not be written.
    AccessViolation,
    /// 3: no room. From a server of ours: more than the name's limit.
    DiskFull,
    /// 4: a packet or a mode that this end does not take.
    IllegalOperation,
    /// 5: the packet belongs to no transfer.
    UnknownTransfer,
    /// 6: the name is there already and is kept.
    FileExists,
    /// 7: no such user (for mail, unused).
    NoSuchUser,
    /// 8: the options are refused (RFC 2347).
    OptionRefused,
    /// Any other number.
    Other(u16),
}

impl ErrorCode {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            Self::Undefined => 0,
            Self::NotFound => 1,
            Self::AccessViolation => 2,
            Self::DiskFull => 3,
            Self::IllegalOperation => 4,
            Self::UnknownTransfer => 5,
            Self::FileExists => 6,
            Self::NoSuchUser => 7,
            Self::OptionRefused => 8,
            Self::Other(number) => number,
        }
    }

    /// The code of a number from the wire.
    #[must_use]
    pub const fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Undefined,
            1 => Self::NotFound,
            2 => Self::AccessViolation,
            3 => Self::DiskFull,
            4 => Self::IllegalOperation,
            5 => Self::UnknownTransfer,
            6 => Self::FileExists,
            7 => Self::NoSuchUser,
            8 => Self::OptionRefused,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// The mode of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Text with CR LF line ends.
    Netascii,
}

/// Name and value of an option, as they came.
pub type RawOption<'a> = (&'a [u8], &'a [u8]);

/// A read or write request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file's name as it came, without the closing NUL.
    pub name: &'a [u8],
    /// The mode's name as it came, any case.
    pub mode: &'a [u8],
    /// Name and value of each option, in their order.
    pub options: Vec<RawOption<'a>>,
}

impl Request<'_> {
    /// The mode, if it is one that anybody still uses.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        if self.mode.eq_ignore_ascii_case(b"octet") {
            Some(Mode::Octet)
        } else if self.mode.eq_ignore_ascii_case(b"netascii") {
            Some(Mode::Netascii)
        } else {
            None
        }
    }
}

/// A packet that borrows from the datagram it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ: the peer wants to GET.
    Read(Request<'a>),
    /// WRQ: the peer wants to PUT.
    Write(Request<'a>),
    /// One block of the file.
    Data {
        /// The block's number, modulo 65536.
        block: u16,
        /// Its bytes; fewer than the block size end the transfer.
        data: &'a [u8],
    },
    /// All blocks up to this one have come.
    Ack {
        /// The block's number, modulo 65536.
        block: u16,
    },
    /// The transfer is over, without success.
    Error {
        /// Why, as a number.
        code: ErrorCode,
        /// Why, in words.
        message: &'a [u8],
    },
    /// The options that the server takes.
    OptionAck {
        /// Name and value of each.
        options: Vec<RawOption<'a>>,
    },
}

/// Why a datagram is not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Fewer bytes than the packet's fixed part.
    #[error("the packet is cut short")]
    Short,
    /// The first two bytes name no operation.
    #[error("there is no operation {0}")]
    UnknownOperation(u16),
    /// A string without its NUL.
    #[error("a string is not closed by a NUL")]
    OpenString,
    /// An option without a value.
    #[error("an option has no value")]
    NoValue,
}

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTION_ACK: u16 = 6;

/// Bytes in front of the data of a DATA packet.
pub const DATA_HEADER: usize = 4;

impl<'a> Packet<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] when it is no TFTP packet.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (operation, rest) = number(bytes)?;
        match operation {
            READ => Ok(Self::Read(request(rest)?)),
            WRITE => Ok(Self::Write(request(rest)?)),
            DATA => {
                let (block, data) = number(rest)?;
                Ok(Self::Data { block, data })
            }
            ACK => {
                let (block, _) = number(rest)?;
                Ok(Self::Ack { block })
            }
            ERROR => {
                let (code, rest) = number(rest)?;
                // Some peers leave out the NUL, or the whole message.
                let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
                Ok(Self::Error {
                    code: ErrorCode::from_number(code),
                    message: &rest[..end],
                })
            }
            OPTION_ACK => Ok(Self::OptionAck {
                options: pairs(rest)?,
            }),
            other => Err(DecodeError::UnknownOperation(other)),
        }
    }
}

fn number(bytes: &[u8]) -> Result<(u16, &[u8]), DecodeError> {
    let (head, rest) = bytes.split_first_chunk::<2>().ok_or(DecodeError::Short)?;
    Ok((u16::from_be_bytes(*head), rest))
}

fn string(bytes: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let end = bytes
        .iter()
        .position(|&b| b == 0)
        .ok_or(DecodeError::OpenString)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

fn request(bytes: &[u8]) -> Result<Request<'_>, DecodeError> {
    let (name, rest) = string(bytes)?;
    let (mode, rest) = string(rest)?;
    Ok(Request {
        name,
        mode,
        options: pairs(rest)?,
    })
}

fn pairs(mut rest: &[u8]) -> Result<Vec<RawOption<'_>>, DecodeError> {
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (name, tail) = string(rest)?;
        if tail.is_empty() {
            return Err(DecodeError::NoValue);
        }
        let (value, tail) = string(tail)?;
        pairs.push((name, value));
        rest = tail;
    }
    Ok(pairs)
}

/// An ACK packet.
#[must_use]
pub fn ack(block: u16) -> [u8; 4] {
    let [a, b] = block.to_be_bytes();
    [0, 4, a, b]
}

/// Writes the header of a DATA packet into the first four bytes of `packet`.
///
/// # Panics
///
/// When `packet` is shorter than [`DATA_HEADER`].
pub fn data_header(packet: &mut [u8], block: u16) {
    let [a, b] = block.to_be_bytes();
    packet[..DATA_HEADER].copy_from_slice(&[0, 3, a, b]);
}

/// An ERROR packet.
#[must_use]
pub fn error(code: ErrorCode, message: &str) -> Vec<u8> {
    let mut packet = Vec::with_capacity(5 + message.len());
    packet.extend_from_slice(&ERROR.to_be_bytes());
    packet.extend_from_slice(&code.number().to_be_bytes());
    packet.extend(message.bytes().filter(|&b| b != 0));
    packet.push(0);
    packet
}

/// An OACK packet.
#[must_use]
pub fn option_ack(options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = OPTION_ACK.to_be_bytes().to_vec();
    push_options(&mut packet, options);
    packet
}

/// A read request in octet mode.
#[must_use]
pub fn read_request(name: &str, options: &[(&str, u64)]) -> Vec<u8> {
    octet_request(READ, name, options)
}

/// A write request in octet mode.
#[must_use]
pub fn write_request(name: &str, options: &[(&str, u64)]) -> Vec<u8> {
    octet_request(WRITE, name, options)
}

fn octet_request(operation: u16, name: &str, options: &[(&str, u64)]) -> Vec<u8> {
    let mut packet = operation.to_be_bytes().to_vec();
    packet.extend_from_slice(name.as_bytes());
    packet.extend_from_slice(b"\0octet\0");
    push_options(&mut packet, options);
    packet
}

fn push_options(packet: &mut Vec<u8>, options: &[(&str, u64)]) {
    for (name, value) in options {
        packet.extend_from_slice(name.as_bytes());
        packet.push(0);
        packet.extend_from_slice(value.to_string().as_bytes());
        packet.push(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let options = [("blksize", 1468), ("tsize", 0)];
        let raw: Vec<RawOption<'_>> = vec![(b"blksize", b"1468"), (b"tsize", b"0")];
        let request = Request {
            name: b"file",
            mode: b"octet",
            options: raw.clone(),
        };
        let read = read_request("file", &options);
        assert_eq!(Packet::decode(&read), Ok(Packet::Read(request.clone())));
        let write = write_request("file", &options);
        assert_eq!(Packet::decode(&write), Ok(Packet::Write(request)));
        let answer = option_ack(&options);
        assert_eq!(
            Packet::decode(&answer),
            Ok(Packet::OptionAck { options: raw })
        );
        assert_eq!(
            Packet::decode(&ack(65_535)),
            Ok(Packet::Ack { block: 65_535 })
        );
        let told = error(ErrorCode::FileExists, "it is\0there");
        let (code, message) = (ErrorCode::FileExists, &b"it isthere"[..]);
        assert_eq!(Packet::decode(&told), Ok(Packet::Error { code, message }));
    }

    #[test]
    fn cut_packets_are_told_apart() {
        assert_eq!(Packet::decode(&[0]), Err(DecodeError::Short));
        assert_eq!(Packet::decode(&[0, 3, 1]), Err(DecodeError::Short));
        assert_eq!(
            Packet::decode(&[0, 7]),
            Err(DecodeError::UnknownOperation(7))
        );
        assert_eq!(Packet::decode(b"\0\x01a"), Err(DecodeError::OpenString));
        assert_eq!(
            Packet::decode(b"\0\x01a\0octet\0x\0"),
            Err(DecodeError::NoValue)
        );
        // An ERROR without its closing NUL is common enough.
        let (code, message) = (ErrorCode::Other(99), &b"x"[..]);
        assert_eq!(
            Packet::decode(b"\0\x05\0\x63x"),
            Ok(Packet::Error { code, message })
        );
    }

    #[test]
    fn codes_keep_their_numbers() {
        for number in 0..20 {
            assert_eq!(ErrorCode::from_number(number).number(), number);
        }
    }
}
