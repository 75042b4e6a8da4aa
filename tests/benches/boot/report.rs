//! The table and the JSON of what was measured.

use serde_json::{Value, json};

/// The figures of one VMM, a list of one value per run for each.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) figures: [Vec<f64>; FIGURES.len()],
}

/// What is measured, with its unit.
pub(crate) const FIGURES: [(&str, &str); 6] = [
    ("start to KVM_RUN", "ms"),
    ("start to kernel", "ms"),
    ("start to /init", "ms"),
    ("start to exit", "ms"),
    ("peak overhead", "KiB"),
    ("settled overhead", "KiB"),
];

/// Lines of the table: medians, and in brackets the ratio to the first row.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = format!("{:26}", "");
    for (name, unit) in FIGURES {
        text += &format!("{:>26}", format!("{name}, {unit}"));
    }
    text.push('\n');
    for row in rows {
        text += &format!("{:26}", row.name);
        for (figure, values) in row.figures.iter().enumerate() {
            let base = median(&rows[0].figures[figure]);
            let value = median(values);
            text += &format!("{:>26}", format!("{value:.1} ({:.2})", value / base));
        }
        text.push('\n');
    }
    text
}

/// Every value of every run, and the medians.
pub(crate) fn json(rows: &[Row], runs: usize) -> Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let figures: serde_json::Map<_, _> = FIGURES
                .iter()
                .zip(&row.figures)
                .map(|((name, unit), values)| {
                    let figure =
                        json!({ "unit": unit, "median": median(values), "values": values });
                    ((*name).to_owned(), figure)
                })
                .collect();
            json!({ "vmm": row.name, "figures": figures })
        })
        .collect();
    json!({ "runs": runs, "memory_mib": super::peers::MEMORY, "rows": rows })
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
