//! QEMU's monitor: a stream in any pieces gives the same lines, each is read, none is endless.
#![no_main]

use bbot_fuzz::Input;
use bbot_machine::qemu::qmp::{Line, Lines, parse};
use libfuzzer_sys::fuzz_target;

fn lines(stream: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut lines = Lines::default();
    let mut all = Vec::new();
    for chunk in stream.chunks(piece) {
        if lines.push(chunk).is_err() {
            break;
        }
        while let Some(line) = lines.next_line() {
            all.push(line.to_vec());
        }
    }
    all
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let piece = usize::from(input.byte()) + 1;
    let stream = input.rest();
    let cut = lines(stream, piece);
    assert_eq!(cut, lines(stream, stream.len().max(1)));
    for line in cut {
        match parse(&line) {
            Line::Answer {
                result: Ok(value), ..
            } => assert!(value.to_string().len() <= 8 * line.len() + 8),
            Line::Answer {
                result: Err((class, words)),
                ..
            } => assert!(class.len() + words.len() <= 2 * line.len() + 14),
            Line::Event(event) => assert!(event.name.len() <= line.len()),
            Line::Greeting(_) | Line::Unknown => {}
        }
    }
});
