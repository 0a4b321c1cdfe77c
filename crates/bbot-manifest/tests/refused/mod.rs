//! Shared by the tests of typed manifests.

use bbot_manifest::ManifestError;

/// Checks the error of each input: `LINE:COLUMN: error: what`.
pub(crate) fn refused<T: std::fmt::Debug>(
    parse: impl Fn(&[u8], &str) -> Result<T, ManifestError>,
    table: &[(&str, &str)],
) {
    for (input, error) in table {
        let Err(got) = parse(input.as_bytes(), "the/source") else {
            panic!("{input:?} was taken");
        };
        assert_eq!(got.to_string(), format!("the/source:{error}"), "{input:?}");
    }
}
