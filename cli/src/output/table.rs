//! Tables as etcdctl draws them: centred titles, right-aligned cells.

/// Rows under titles.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        Self { titles: titles.to_vec(), rows: Vec::new() }
    }

    /// Makes a row of each line `"Name" : value`.
    pub(crate) fn of_fields(fields: &str) -> Self {
        let mut table = Self::new(&["field", "value"]);
        for (name, value) in fields.lines().filter_map(|line| line.split_once(" : ")) {
            table.row(vec![name.trim_matches('"').to_owned(), value.to_owned()]);
        }
        table
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.titles.len(), "a row has a cell for each title");
        self.rows.push(cells);
    }

    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = self
            .titles
            .iter()
            .enumerate()
            .map(|(column, title)| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.chain([title.len()]).max().unwrap_or(0)
            })
            .collect();
        let border: String =
            widths.iter().map(|width| format!("+{:-<1$}", "", width + 2)).collect();
        let titles: Vec<String> = self.titles.iter().map(|title| title.to_uppercase()).collect();
        let mut out = format!("{border}+\n");
        out.push_str(&line(&titles, |column, title| format!("{title:^0$}", widths[column])));
        out.push_str(&format!("{border}+\n"));
        for row in &self.rows {
            out.push_str(&line(row, |column, cell| format!("{cell:>0$}", widths[column])));
        }
        out.push_str(&format!("{border}+\n"));
        out
    }
}

fn line(cells: &[String], pad: impl Fn(usize, &str) -> String) -> String {
    let cells: String = cells
        .iter()
        .enumerate()
        .map(|(column, cell)| format!("| {} ", pad(column, cell)))
        .collect();
    format!("{cells}|\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_centred_and_cells_are_to_the_right() {
        let mut table = Table::new(&["endpoint", "hash"]);
        table.row(vec!["127.0.0.1:42379".to_owned(), "1569216897".to_owned()]);
        table.row(vec!["n2".to_owned(), "7".to_owned()]);
        let drawn = "\
+-----------------+------------+
|    ENDPOINT     |    HASH    |
+-----------------+------------+
| 127.0.0.1:42379 | 1569216897 |
|              n2 |          7 |
+-----------------+------------+
";
        assert_eq!(table.render(), drawn);
    }

    #[test]
    fn fields_are_rows() {
        let drawn = Table::of_fields("\"Revision\" : 7\n\n\"Key\" : \"a : b\"\n").render();
        let drawn: Vec<&str> = drawn.lines().collect();
        assert_eq!(drawn[3..5], ["| Revision |       7 |", "|      Key | \"a : b\" |"]);
    }
}
