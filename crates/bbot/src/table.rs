//! Tables for people: columns as wide as their widest cell; on a terminal the last one, which
//! has the long texts, goes on below itself.

use std::io::{self, IsTerminal, Write};

/// A table with a heading; cells hold plain text from anywhere, so control characters are replaced.
#[derive(Debug)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(heading: &[&'static str]) -> Table {
        Table {
            heading: heading.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells
            .into_iter()
            .map(|cell| {
                cell.chars()
                    .map(|c| if c.is_control() { '?' } else { c })
                    .collect()
            })
            .collect();
        row.resize(self.heading.len(), String::new());
        self.rows.push(row);
    }

    /// `terminal` is the width of the terminal, where it goes to one.
    fn render(&self, terminal: Option<usize>) -> String {
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells
                    .chain([self.heading[column].chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        // Where the last column begins, and how much room it has there.
        let indent: usize = widths.iter().rev().skip(1).map(|width| width + 2).sum();
        let room = terminal
            .map(|width| width.saturating_sub(indent))
            .filter(|&room| room >= LEAST_ROOM);
        let mut text = String::new();
        let heading: Vec<String> = self.heading.iter().map(|h| h.to_uppercase()).collect();
        for (index, row) in std::iter::once(&heading).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if let Some(room) = room.filter(|_| column + 1 == row.len()) {
                    line.push_str(&wrapped(cell, room).join(&format!("\n{}", " ".repeat(indent))));
                    continue;
                }
                line.push_str(cell);
                line.push_str(&" ".repeat(width - cell.chars().count() + 2));
            }
            let line = line.trim_end();
            match (index, terminal.is_some()) {
                (0, true) => text.push_str(&format!("\x1b[1m{line}\x1b[0m\n")),
                _ => text.push_str(&format!("{line}\n")),
            }
        }
        text
    }

    /// Prints the table on standard output, the heading bold on a terminal.
    pub(crate) fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let terminal = out.is_terminal().then(|| {
            // One that does not know its width does not wrap.
            match rustix::termios::tcgetwinsize(&out) {
                Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
                _ => usize::MAX,
            }
        });
        out.write_all(self.render(terminal).as_bytes())
    }
}

/// With less room for its last column a table is not wrapped: it would be read even worse.
const LEAST_ROOM: usize = 20;

/// The lines of a text, of at most `width` characters but for words that are longer.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_string());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["name", "status"]);
        table.row(["a".into(), "success".into()]);
        table.row(["longer\x1b[31m".into()]);
        assert_eq!(
            table.render(None),
            "NAME         STATUS\na            success\nlonger?[31m\n"
        );
    }

    #[test]
    fn the_last_column_goes_on_below_itself() {
        let mut table = Table::new(&["ago", "message"]);
        table.row(["3 s".into(), "one two three four five six seven".into()]);
        table.row(["4 s".into(), "short".into()]);
        let heading = "\x1b[1mAGO  MESSAGE\x1b[0m\n";
        let whole = format!("{heading}3 s  one two three four five six seven\n4 s  short\n");
        assert_eq!(table.render(Some(usize::MAX)), whole);
        assert_eq!(
            table.render(Some(28)),
            format!("{heading}3 s  one two three four five\n     six seven\n4 s  short\n")
        );
        // Hardly any room: the terminal does it.
        assert_eq!(table.render(Some(20)), whole);
    }

    #[test]
    fn long_words_stay_whole() {
        let lines = ["a", "/a/very/long/path", "b c"];
        assert_eq!(wrapped("a /a/very/long/path b c", 5), lines);
        assert_eq!(wrapped("", 5), [""]);
    }
}
