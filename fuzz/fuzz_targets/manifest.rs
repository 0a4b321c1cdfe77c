//! The manifest format: what can be read can be written, in every style, and reads the same; errors name a place in the
//! input; and the smaller formats that stand in values.
#![no_main]

use bbot_manifest::{
    Introducer, Manifest, PackageVersion, StandardVersion, Style, cut_middle, json, log_text,
    merge_comment, parse, quoting, sanitize, serialize, split_comment, validate_value,
};
use libfuzzer_sys::fuzz_target;

fn same(a: &[Manifest], b: &[Manifest]) -> bool {
    a.len() == b.len() && std::iter::zip(a, b).all(|(a, b)| a.same_data(b))
}

fn read(data: &[u8]) {
    match parse(data) {
        Ok(manifests) => {
            for pair in manifests.iter().flat_map(|manifest| &manifest.pairs) {
                assert!(!pair.name.is_empty() && !pair.value.contains('\r'));
                assert_eq!(validate_value(pair.value.as_bytes(), ""), Ok(()));
                let (value, comment) = split_comment(&pair.value);
                assert!(value.len() + comment.len() <= pair.value.len());
                // Merged, they come apart as they were, but for blanks at the end of what becomes one line.
                let again = split_comment(&merge_comment(&value, &comment));
                assert_eq!(again.0.trim_end(), value.trim_end());
                assert_eq!(again.1.trim(), comment.trim());
            }
            for introducer in [Introducer::Old, Introducer::New] {
                for long_lines in [false, true] {
                    let style = Style {
                        introducer,
                        long_lines,
                    };
                    let text = serialize(&manifests, style).expect("what was read can be written");
                    let again = parse(text.as_bytes()).expect("what was written can be read");
                    assert!(same(&manifests, &again), "{text}");
                    assert_eq!(serialize(&again, style).as_ref(), Ok(&text));
                }
            }
            let back =
                json::from_json(&json::to_json(&manifests)).expect("our own JSON can be read");
            assert!(same(&manifests, &back));
        }
        Err(error) => {
            let lines = data.iter().filter(|b| matches!(b, b'\n' | b'\r')).count() as u64;
            assert!((1..=lines + 1).contains(&error.line), "{error}");
            assert!(
                (1..=data.len() as u64 + 1).contains(&error.column),
                "{error}"
            );
        }
    }
}

fn words(data: &[u8]) {
    for text in [sanitize(data), log_text(data)] {
        assert_eq!(validate_value(text.as_bytes(), ""), Ok(()));
        assert!(text.len() <= data.len());
        assert_eq!(sanitize(text.as_bytes()), text);
    }
    let text = String::from_utf8_lossy(data);
    for max in [0, 10, 100, 1000] {
        assert!(text.len() <= max || cut_middle(&text, max).len() <= max);
    }
    if let Ok(list) = quoting::split(&text) {
        assert_eq!(quoting::split(&quoting::join(&list)).as_ref(), Ok(&list));
    }
    if let Ok(manifests) = json::from_json(&text) {
        assert!(same(
            &manifests,
            &json::from_json(&json::to_json(&manifests)).expect("our own JSON can be read")
        ));
    }
    if let Ok(version) = StandardVersion::parse(&text) {
        assert_eq!(
            StandardVersion::parse(&version.to_string()).as_ref(),
            Ok(&version)
        );
    }
    if let Ok(version) = PackageVersion::parse(&text) {
        assert_eq!(
            PackageVersion::parse(&version.to_string()).as_ref(),
            Ok(&version)
        );
    }
}

fuzz_target!(|data: &[u8]| {
    read(data);
    words(data);
});
