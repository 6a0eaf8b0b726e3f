//! A page about a run: figures, curves and searches in one HTML file that needs nothing else.

mod curves;

use std::{
    fmt::{self, Write},
    io,
    path::Path,
};

use base64::{display::Base64Display, prelude::BASE64_STANDARD};
use cn_clip_data::atomic::write_atomically;

pub use curves::Curve;

const STYLE: &str = include_str!("../../assets/report.css");

/// What a page shows.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// Name and value of what is worth knowing: data, size, time.
    pub facts: Vec<(String, String)>,
    /// Tables of figures.
    pub tables: Vec<Table>,
    /// Curves over training steps.
    pub plots: Vec<Plot>,
    /// Searches and what they found.
    pub searches: Vec<Search>,
}

/// Curves of one kind of number.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plot {
    /// What the vertical axis is.
    pub axis: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// Figures in rows and columns.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Caption.
    pub caption: String,
    /// Names of the columns of numbers.
    pub columns: Vec<String>,
    /// Name and numbers of each row.
    pub rows: Vec<(String, Vec<f64>)>,
}

/// A search by text.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// The text.
    pub query: String,
    /// What was found, best first.
    pub hits: Vec<Hit>,
}

/// A picture that was found.
#[derive(Debug, Clone, Default)]
pub struct Hit {
    /// The picture file.
    pub picture: Vec<u8>,
    /// What it shows.
    pub caption: String,
    /// Cosine similarity.
    pub score: f32,
    /// Whether it is what the text asks for.
    pub correct: bool,
}

impl Report {
    /// Writes the page; a file there was is replaced, and stays if that fails.
    ///
    /// # Errors
    /// When the directory is missing or the disk is full.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        write_atomically(path, self.to_string().as_bytes())
    }
}

impl fmt::Display for Report {
    /// The page.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = Escaped(&self.title);
        write!(
            f,
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <h1>{title}</h1>\n"
        )?;
        if !self.facts.is_empty() {
            f.write_str("<dl>\n")?;
            for (name, value) in &self.facts {
                writeln!(f, "<div><dt>{}</dt><dd>{}</dd></div>", Escaped(name), Escaped(value))?;
            }
            f.write_str("</dl>\n")?;
        }
        f.write_str("<div class=\"tables\">\n")?;
        self.tables.iter().try_for_each(|table| table.fmt(f))?;
        f.write_str("</div>\n")?;
        if !self.plots.is_empty() {
            writeln!(f, "<h2>Training</h2>")?;
        }
        self.plots.iter().try_for_each(|plot| curves::plot(f, &plot.axis, &plot.curves))?;
        if !self.searches.is_empty() {
            writeln!(f, "<h2>Searches</h2>")?;
        }
        self.searches.iter().try_for_each(|search| search.fmt(f))?;
        f.write_str("</main>\n</body>\n</html>\n")
    }
}

impl Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<table>\n<caption>{}</caption>\n<thead><tr><td></td>", Escaped(&self.caption))?;
        for column in &self.columns {
            write!(f, "<th scope=\"col\">{}</th>", Escaped(column))?;
        }
        f.write_str("</tr></thead>\n<tbody>\n")?;
        for (name, values) in &self.rows {
            write!(f, "<tr><th scope=\"row\">{}</th>", Escaped(name))?;
            for value in values {
                write!(f, "<td>{value:.1}</td>")?;
            }
            f.write_str("</tr>\n")?;
        }
        f.write_str("</tbody>\n</table>\n")
    }
}

impl Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "<section>\n<h3 lang=\"zh\">{}</h3>\n<ol>", Escaped(&self.query))?;
        for hit in &self.hits {
            let (class, mark) = if hit.correct { (" class=\"hit\"", "✓ ") } else { ("", "") };
            let caption = Escaped(&hit.caption);
            writeln!(
                f,
                "<li{class}><img alt=\"{caption}\" src=\"data:{};base64,{}\">\
                 <span lang=\"zh\">{mark}{caption}</span> <small>{:.3}</small></li>",
                media_type(&hit.picture),
                Base64Display::new(&hit.picture, &BASE64_STANDARD),
                hit.score
            )?;
        }
        f.write_str("</ol>\n</section>\n")
    }
}

/// The type of a picture file, by its first bytes.
fn media_type(picture: &[u8]) -> &'static str {
    match picture {
        [0xff, 0xd8, ..] => "image/jpeg",
        [0x89, b'P', b'N', b'G', ..] => "image/png",
        [b'G', b'I', b'F', b'8', ..] => "image/gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "image/webp",
        [b'B', b'M', ..] => "image/bmp",
        _ => "application/octet-stream",
    }
}

/// Text as HTML, also within quotes.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let hit = |caption: &str, correct| Hit {
            picture: b"\x89PNG1234".to_vec(),
            caption: caption.to_string(),
            score: 0.25,
            correct,
        };
        let report = Report {
            title: "a & b".to_string(),
            facts: vec![("steps".to_string(), "<10".to_string())],
            tables: vec![Table {
                caption: "Recall".to_string(),
                columns: vec!["R@1".to_string(), "R@5".to_string()],
                rows: vec![("chance".to_string(), vec![0.107, 12.55])],
            }],
            plots: vec![Plot {
                axis: "loss".to_string(),
                curves: vec![Curve { name: "train".to_string(), points: vec![(1, 2.0), (5, 1.0)] }],
            }],
            searches: vec![Search {
                query: "猫".to_string(),
                hits: vec![hit("猫", true), hit("<script>\"'", false)],
            }],
        };
        report.to_string()
    }

    #[test]
    fn everything_is_on_the_page() {
        let page = page();
        for part in [
            "<title>a &amp; b</title>",
            "<dt>steps</dt><dd>&lt;10</dd>",
            "<th scope=\"row\">chance</th><td>0.1</td><td>12.6</td>",
            "<h3 lang=\"zh\">猫</h3>",
            "data:image/png;base64,iVBORzEyMzQ=",
            "<li class=\"hit\">",
            "✓ 猫",
            "0.250",
            "<polyline",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert_eq!(page.matches("<img").count(), 2);
    }

    #[test]
    fn markup_in_texts_stays_text_and_nothing_is_loaded() {
        let page = page();
        assert!(!page.contains("<script"));
        assert!(page.contains("&lt;script&gt;&quot;&#39;"));
        assert!(!page.contains("http"), "needs nothing from elsewhere");
    }

    #[test]
    fn kinds_of_pictures() {
        assert_eq!(media_type(b"\xff\xd8\xff"), "image/jpeg");
        assert_eq!(media_type(b"GIF89a"), "image/gif");
        assert_eq!(media_type(b"RIFF1234WEBPVP8 "), "image/webp");
        assert_eq!(media_type(b"BM12"), "image/bmp");
        assert_eq!(media_type(b""), "application/octet-stream");
    }

    #[test]
    fn an_empty_report_is_a_page() {
        let page = Report::default().to_string();
        assert!(page.contains("</html>") && !page.contains("<svg") && !page.contains("<h2>"));
    }
}
