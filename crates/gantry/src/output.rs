//! `-o table|wide|name|json|yaml`.

use serde::Serialize;

use crate::{
    failure::{Failure, Result},
    printer::Printer,
};

/// How a list is shown. JSON and YAML are for programs and stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Wide,
    Name,
    Json,
    Yaml,
}

/// The flag, for commands that have something to list.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// Format of the output
    #[arg(long = "output", short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, hide_default_value = true)]
    pub format: Format,
}

/// A row of a table.
pub trait Row: Serialize {
    /// Headings; those from [`Self::WIDE_FROM`] on are shown by `-o wide` only.
    const HEADINGS: &'static [&'static str];
    const WIDE_FROM: usize;
    /// What `-o name` shows.
    fn name(&self) -> String;
    fn cells(&self) -> Vec<String>;
}

/// Shows rows in the format that was asked for.
pub fn show<R: Row>(rows: &[R], format: Format, printer: &Printer) -> Result<()> {
    match format {
        Format::Table | Format::Wide => {
            let count = if format == Format::Wide { R::HEADINGS.len() } else { R::WIDE_FROM };
            let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
            printer.bytes(table(&R::HEADINGS[..count], &cells).as_bytes());
        }
        Format::Name => rows.iter().for_each(|row| printer.data(row.name())),
        Format::Json | Format::Yaml => value(&serde_json::json!({ "items": rows }), format, printer)?,
    }
    Ok(())
}

/// Shows one value as JSON or YAML.
pub fn value(value: &impl Serialize, format: Format, printer: &Printer) -> Result<()> {
    let text = if format == Format::Yaml {
        serde_yaml_ng::to_string(value).map_err(|error| Failure::from_error(&error))?
    } else {
        let mut text = serde_json::to_string_pretty(value).map_err(|error| Failure::from_error(&error))?;
        text.push('\n');
        text
    };
    printer.bytes(text.as_bytes());
    Ok(())
}

fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}   "));
        }
        format!("{}\n", line.trim_end())
    };
    let mut text = line(headings);
    for row in rows {
        let cells: Vec<&str> = row.iter().take(headings.len()).map(String::as_str).collect();
        text.push_str(&line(&cells));
    }
    text
}

/// How long ago, in kubectl's way: the two largest units, one when that says enough.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 && seconds % 60 != 0 => format!("{minutes}m{}s", seconds % 60),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 && minutes % 60 != 0 => format!("{hours}h{}m", minutes % 60),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 && hours % 24 != 0 => format!("{days}d{}h", hours % 24),
        () => format!("{days}d"),
    }
}

/// Bytes as people read them.
pub fn bytes(count: u64) -> String {
    const UNITS: &[&str] = &["kB", "MB", "GB", "TB"];
    let mut unit = "B";
    #[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
    let mut value = count as f64;
    for next in UNITS {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = vec![vec!["hello".to_owned(), "1/1".to_owned()], vec!["x".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "READY"], &rows), "NAME    READY\nhello   1/1\nx\n");
        assert_eq!(table(&["NAME"], &rows), "NAME\nhello\nx\n");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        let ages = [5, 119, 125, 600, 3600, 4 * 3600 + 60, 86_400, 3 * 86_400, 400 * 86_400].map(age);
        assert_eq!(ages, ["5s", "119s", "2m5s", "10m", "60m", "4h1m", "24h", "3d", "400d"]);
        assert_eq!([0, 999, 2_600_000, 5_000_000_000].map(bytes), ["0 B", "999 B", "2.6 MB", "5.0 GB"]);
    }
}
