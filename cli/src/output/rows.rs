//! Lists that etcdctl does not have: the same cells in every form.

use serde_json::{Map, Value};

use super::{Answer, Style, Table, json::Writer, line, printable};

/// Rows under titles. A cell is a string, a number or a boolean.
pub(crate) struct Rows {
    pub(crate) titles: &'static [&'static str],
    pub(crate) rows: Vec<Vec<Value>>,
}

/// A cell as text for people.
fn text(cell: &Value) -> String {
    match cell {
        Value::String(text) => printable(text).into_owned(),
        other => printable(&other.to_string()).into_owned(),
    }
}

impl Answer for Rows {
    fn simple(&self, out: &mut Vec<u8>, _style: Style) {
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(text).collect();
            line!(out, "{}", cells.join(", "));
        }
    }

    fn json(&self, out: &mut Writer) {
        out.array(&self.rows, |out, row| {
            let names = self.titles.iter().map(|title| title.replace(' ', "_"));
            let object: Map<String, Value> = names.zip(row.iter().cloned()).collect();
            out.raw(&Value::Object(object).to_string());
        });
    }

    fn fields(&self, out: &mut Vec<u8>) {
        for row in &self.rows {
            for (title, cell) in self.titles.iter().zip(row) {
                line!(out, "\"{title}\" : {cell}");
            }
        }
    }

    fn table(&self) -> Option<Table> {
        let mut table = Table::new(self.titles);
        for row in &self.rows {
            table.row(row.iter().map(text).collect());
        }
        Some(table)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_has_every_form() {
        let rows = vec![vec![json!("a b"), json!(1)], vec![json!("c"), json!(true)]];
        let rows = Rows { titles: &["name", "is held"], rows };
        let mut simple = Vec::new();
        rows.simple(&mut simple, Style::default());
        assert_eq!(simple, b"a b, 1\nc, true\n");
        let mut json = Writer::default();
        rows.json(&mut json);
        let expected = br#"[{"is_held":1,"name":"a b"},{"is_held":true,"name":"c"}]"#;
        assert_eq!(json.into_bytes(), expected);
        let mut fields = Vec::new();
        rows.fields(&mut fields);
        assert_eq!(
            fields,
            b"\"name\" : \"a b\"\n\"is held\" : 1\n\"name\" : \"c\"\n\"is held\" : true\n"
        );
        assert!(rows.table().expect("a table").render().contains("| NAME | IS HELD |"));
        let forged = vec![vec![json!("a\nb, 2\u{1b}[2J"), json!(1)]];
        let forged = Rows { titles: &["name", "is held"], rows: forged };
        let mut simple = Vec::new();
        forged.simple(&mut simple, Style::default());
        assert_eq!(simple, b"a\\nb, 2\\u{1b}[2J, 1\n");
        let table = forged.table().expect("a table").render();
        assert!(table.contains(r"| a\nb, 2\u{1b}[2J |"), "{table}");
    }
}
