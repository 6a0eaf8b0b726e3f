//! Prompt templates of zero-shot classification.
//!
//! The texts are the reference's (`cvinw_zeroshot_templates.py`), as data in
//! `assets/templates.json`: set name to templates with `{}` for the label.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::zeroshot::ZeroShotError;

/// Place of the label in a template.
const LABEL: &str = "{}";

static SETS: LazyLock<BTreeMap<String, Vec<String>>> = LazyLock::new(|| {
    // The asset is part of the program: tests read it whole.
    serde_json::from_str(include_str!("../assets/templates.json")).unwrap_or_default()
});

/// A named list of templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateSet {
    name: Cow<'static, str>,
    templates: Cow<'static, [String]>,
}

impl TemplateSet {
    /// The set of a name: `openai`, `aircraft`, `food`, …; `None` if there is none.
    pub fn named(name: &str) -> Option<Self> {
        let (key, templates) = SETS.get_key_value(&format!("{name}_templates"))?;
        let name = key.strip_suffix("_templates")?;
        Some(Self { name: name.into(), templates: templates.as_slice().into() })
    }

    /// The set that the reference uses for a data set, chosen by the exact name; `openai` where it
    /// has none of its own.
    pub fn for_dataset(dataset: &str) -> Self {
        let name = match dataset {
            "fgvc-aircraft-2013b-variants102" => "aircraft",
            "food-101" => "food",
            "oxford-flower-102" => "flower",
            "eurosat_clip" | "resisc45_clip" => "eurosat",
            "country211" => "country211",
            _ => "openai",
        };
        Self::named(name).unwrap_or(Self { name: name.into(), templates: Vec::new().into() })
    }

    /// Templates of one's own: a file with one on each line, `{}` in the place of the label.
    ///
    /// # Errors
    /// [`ZeroShotError::Read`], and [`ZeroShotError::Template`] with the line that is not UTF-8 or
    /// has no place or several.
    pub fn read(path: &Path) -> Result<Self, ZeroShotError> {
        let bytes = fs::read(path)
            .map_err(|source| ZeroShotError::Read { path: path.to_owned(), source })?;
        let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let template = |(index, line): (usize, &[u8])| match str::from_utf8(line).map(str::trim) {
            Ok(template) if template.matches(LABEL).count() == 1 => Ok(template.to_owned()),
            _ => Err(ZeroShotError::Template { path: path.to_owned(), line: index + 1 }),
        };
        let templates: Result<Vec<String>, _> =
            text.split(|&byte| byte == b'\n').enumerate().map(template).collect();
        let name = path.file_stem().map_or(String::new(), |stem| stem.display().to_string());
        Ok(Self { name: name.into(), templates: templates?.into() })
    }

    /// All names, sorted.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SETS.keys().filter_map(|key| key.strip_suffix("_templates"))
    }

    /// Name of this set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The templates.
    pub fn templates(&self) -> &[String] {
        &self.templates
    }

    /// Number of templates.
    pub fn len(&self) -> usize {
        self.templates.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// The prompts of a label, before the tokenizer's lower-casing for data sets.
    pub fn prompts(&self, label: &str) -> impl Iterator<Item = String> {
        self.templates.iter().map(move |template| template.replacen(LABEL, label, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_the_references_sizes_and_one_place_each() {
        let sizes: Vec<_> = TemplateSet::names()
            .map(|name| (name, TemplateSet::named(name).unwrap().len()))
            .collect();
        assert_eq!(
            sizes,
            [
                ("aircraft", 100),
                ("caltech101", 16),
                ("cars", 7),
                ("cifar100", 11),
                ("country211", 4),
                ("dtd", 6),
                ("eurosat", 24),
                ("fer", 5),
                ("flower", 32),
                ("food", 21),
                ("hatefulmemes", 2),
                ("kitti", 3),
                ("normal", 1),
                ("openai", 183),
                ("patch", 3),
                ("pet", 6),
            ]
        );
        assert!(SETS.values().flatten().all(|template| template.matches(LABEL).count() == 1));
    }

    #[test]
    fn sets_are_chosen_by_the_exact_name_of_the_data_set() {
        for (dataset, name, size) in [
            ("fgvc-aircraft-2013b-variants102", "aircraft", 100),
            ("food-101", "food", 21),
            ("oxford-flower-102", "flower", 32),
            ("eurosat_clip", "eurosat", 24),
            ("resisc45_clip", "eurosat", 24),
            ("country211", "country211", 4),
            ("imagenet", "openai", 183),
            ("Food-101", "openai", 183),
        ] {
            let set = TemplateSet::for_dataset(dataset);
            assert_eq!((set.name(), set.len()), (name, size), "{dataset}");
        }
        assert_eq!(TemplateSet::named("none"), None);
    }

    #[test]
    fn labels_take_the_place_literally() {
        let set = TemplateSet::named("kitti").unwrap();
        let prompts: Vec<_> = set.prompts("{}猫").collect();
        assert_eq!(prompts, ["照片里{}猫", "图片里{}猫", "{}猫"]);
        assert_eq!((set.name(), set.is_empty()), ("kitti", false));
    }

    #[test]
    fn templates_of_a_file_are_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.txt");
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            TemplateSet::read(&path)
        };
        let set = read("\u{feff}一张{}的照片\r\n {}\n".as_bytes()).unwrap();
        assert_eq!(
            (set.name(), set.templates()),
            ("mine", &["一张{}的照片".to_owned(), "{}".to_owned()][..])
        );
        for (bytes, bad) in [
            (&b""[..], 1),
            (b"{}\n\n{}", 2),
            (b"{}\nno place", 2),
            (b"{} {}", 1),
            (b"{}\n{}\n\xff{}", 3),
        ] {
            let error = read(bytes).unwrap_err();
            assert!(
                matches!(error, ZeroShotError::Template { line, .. } if line == bad),
                "{error}"
            );
        }
        let missing = TemplateSet::read(&folder.path().join("none"));
        assert!(matches!(missing, Err(ZeroShotError::Read { .. })));
    }
}
