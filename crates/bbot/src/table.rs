//! Tables for people: columns as wide as their widest cell.

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

    fn render(&self, emphasize: bool) -> String {
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells
                    .chain([self.heading[column].chars().count()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let heading: Vec<String> = self.heading.iter().map(|h| h.to_uppercase()).collect();
        for (index, row) in std::iter::once(&heading).chain(&self.rows).enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.push_str(&" ".repeat(width - cell.chars().count() + 2));
            }
            let line = line.trim_end();
            match (index, emphasize) {
                (0, true) => text.push_str(&format!("\x1b[1m{line}\x1b[0m\n")),
                _ => text.push_str(&format!("{line}\n")),
            }
        }
        text
    }

    /// Prints the table on standard output, the heading bold on a terminal.
    pub(crate) fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(self.render(io::stdout().is_terminal()).as_bytes())
    }
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
            table.render(false),
            "NAME         STATUS\na            success\nlonger?[31m\n"
        );
    }
}
