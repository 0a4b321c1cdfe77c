//! Values with a comment: `value; comment`. The fields of tasks and results
//! have none; those of package manifests do.

/// Takes a parsed value apart into the value proper and its comment, which is
/// empty when there is none.
///
/// In one line, the first `;` without a backslash before it parts them, `\;` is
/// `;` and `\\` is `\`, and blanks around the separator go. In several lines, a
/// line of one `;` parts them, and a line of backslashes and a `;` stands for
/// one with fewer.
pub fn split_comment(text: &str) -> (String, String) {
    if text.contains('\n') {
        split_lines(text)
    } else {
        split_line(text)
    }
}

fn split_line(text: &str) -> (String, String) {
    let mut value = String::with_capacity(text.len());
    let mut comment = "";
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            ';' => {
                comment = &text[at + 1..];
                break;
            }
            '\\' => {
                let escaped = chars.next_if(|(_, c)| matches!(c, ';' | '\\'));
                value.push(escaped.map_or('\\', |(_, c)| c));
            }
            c => value.push(c),
        }
    }
    value.truncate(value.trim_end_matches([' ', '\t']).len());
    let comment = comment.trim_start_matches([' ', '\t']).to_owned();
    (value, comment)
}

/// The number of backslashes in a line of backslashes and one `;`.
fn escapes(line: &str) -> Option<usize> {
    let backslashes = line.strip_suffix(';')?;
    backslashes
        .bytes()
        .all(|b| b == b'\\')
        .then_some(backslashes.len())
}

fn split_lines(text: &str) -> (String, String) {
    let mut value = String::with_capacity(text.len());
    let mut at = 0;
    for (i, line) in text.split('\n').enumerate() {
        at += line.len() + 1;
        let kept = match escapes(line) {
            Some(0) => return (value, text.get(at..).unwrap_or_default().to_owned()),
            Some(n) => &line[n.div_ceil(2)..],
            None => line,
        };
        if i > 0 {
            value.push('\n');
        }
        value.push_str(kept);
    }
    (value, String::new())
}

/// Puts a value and its comment together, so that [`split_comment`] takes them
/// apart again. Not all pairs can be told apart: in one line, blanks at the end
/// of the value and at the start of the comment are lost.
pub fn merge_comment(value: &str, comment: &str) -> String {
    let mut out = String::with_capacity(value.len() + comment.len() + 2);
    if value.contains('\n') || comment.contains('\n') {
        for (i, line) in value.split('\n').enumerate() {
            if i > 0 {
                out.push('\n');
            }
            // As many backslashes again, and one where there were none.
            if let Some(n) = escapes(line) {
                out.extend(std::iter::repeat_n('\\', n.max(1)));
            }
            out.push_str(line);
        }
        if !comment.is_empty() {
            out.push_str(if value.is_empty() { ";\n" } else { "\n;\n" });
            out.push_str(comment);
        }
        return out;
    }
    for c in value.chars() {
        if matches!(c, ';' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    if !comment.is_empty() {
        out.push_str("; ");
        out.push_str(comment);
    }
    out
}
