//! The table and the JSON of what a benchmark measured.

use serde_json::{Value, json};

/// What is measured, with its unit.
pub type Figure = (&'static str, &'static str);

/// The figures of one program, a list of one value per run for each.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// The values, in the order of the figures.
    pub figures: Vec<Vec<f64>>,
}

impl Row {
    /// A row without values.
    pub fn new(name: &'static str, figures: &[Figure]) -> Self {
        Self {
            name,
            figures: vec![Vec::new(); figures.len()],
        }
    }

    /// Adds the values of one run.
    pub fn push(&mut self, values: impl IntoIterator<Item = f64>) {
        for (all, value) in self.figures.iter_mut().zip(values) {
            all.push(value);
        }
    }
}

/// Lines of the table: medians, and in brackets the ratio to the first row.
pub fn table(figures: &[Figure], rows: &[Row]) -> String {
    let mut text = format!("{:26}", "");
    for (name, unit) in figures {
        text += &format!("{:>26}", format!("{name}, {unit}"));
    }
    text.push('\n');
    for row in rows {
        text += &format!("{:26}", row.name);
        for (first, values) in rows[0].figures.iter().zip(&row.figures) {
            let value = median(values);
            let ratio = value / median(first);
            text += &format!("{:>26}", format!("{value:.2} ({ratio:.2})"));
        }
        text.push('\n');
    }
    text
}

/// Every value of every run, and the medians.
pub fn json(figures: &[Figure], rows: &[Row], runs: usize) -> Value {
    let row = |row: &Row| {
        let figures: serde_json::Map<_, _> = figures
            .iter()
            .zip(&row.figures)
            .map(|((name, unit), values)| {
                let figure = json!({ "unit": unit, "median": median(values), "values": values });
                ((*name).to_owned(), figure)
            })
            .collect();
        json!({ "vmm": row.name, "figures": figures })
    };
    json!({ "runs": runs, "rows": rows.iter().map(row).collect::<Vec<_>>() })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_that_of_the_medians_to_the_first_row() {
        let figures = [("start", "ms")];
        let mut rows = [Row::new("first", &figures), Row::new("second", &figures)];
        for (first, second) in [(1.0, 4.0), (2.0, 6.0), (90.0, 3.0)] {
            rows[0].push([first]);
            rows[1].push([second]);
        }
        let table = table(&figures, &rows);
        assert!(
            table.contains("2.00 (1.00)") && table.contains("4.00 (2.00)"),
            "{table}"
        );
        assert_eq!(
            json(&figures, &rows, 3)["rows"][1]["figures"]["start"]["median"],
            4.0
        );
    }
}
