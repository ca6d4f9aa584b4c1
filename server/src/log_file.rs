//! A log file that is set aside when it is full.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::LogRotation;

/// The end of a file, which may be replaced by an empty one.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    rotation: Option<LogRotation>,
}

impl LogFile {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// Whatever the system reports.
    pub(crate) fn open(path: &Path, rotation: Option<LogRotation>) -> io::Result<Self> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, bytes, rotation })
    }

    /// Writes one line, to an empty file if this one is full.
    ///
    /// # Errors
    /// Whatever the system reports.
    pub(crate) fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(rotation) = self.rotation
            && self.bytes > 0
            && self.bytes.saturating_add(line.len() as u64) > rotation.bytes_max
        {
            self.rotate(&rotation)?;
        }
        self.file.write_all(line)?;
        self.bytes = self.bytes.saturating_add(line.len() as u64);
        Ok(())
    }

    fn rotate(&mut self, rotation: &LogRotation) -> io::Result<()> {
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        let (stem, extension) = names(&self.path);
        let full = format!("{stem}-{}{extension}", now.replace(':', "-"));
        fs::rename(&self.path, self.path.with_file_name(full))?;
        self.file = append(&self.path)?;
        self.bytes = 0;
        self.prune(rotation)
    }

    /// Removes full files that are too many or too old.
    fn prune(&self, rotation: &LogRotation) -> io::Result<()> {
        let (stem, extension) = names(&self.path);
        let prefix = format!("{stem}-");
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let mut full = Vec::new();
        for entry in fs::read_dir(directory.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let time = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(&extension));
            // Only what was set aside here: a time stands in between.
            if time.is_some_and(|time| time.ends_with('Z') && time.contains('T')) {
                full.push((name, entry));
            }
        }
        full.sort_by(|(a, _), (b, _)| b.cmp(a));
        let now = SystemTime::now();
        for (i, (_, entry)) in full.iter().enumerate() {
            let age = now.duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            let is_old = rotation.age_max.is_some_and(|age_max| age > age_max);
            if is_old || rotation.files_max.is_some_and(|files_max| i >= files_max) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Name of a file without its extension, and the extension with its dot.
fn names(path: &Path) -> (String, String) {
    let text =
        |part: Option<&OsStr>| part.map_or_else(String::new, |part| part.display().to_string());
    let extension = text(path.extension());
    let dot = if extension.is_empty() { "" } else { "." };
    (text(path.file_stem()), format!("{dot}{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_set_aside_and_the_oldest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.log");
        fs::write(dir.path().join("server-notes.log"), "mine").unwrap();
        let rotation = LogRotation { bytes_max: 10, age_max: None, files_max: Some(2) };
        let mut log = LogFile::open(&path, Some(rotation)).unwrap();
        for i in 0..5 {
            log.write_line(format!("line {i}\n").as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 4\n");
        let mut all: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        all.sort();
        assert_eq!(all, ["line 2\n", "line 3\n", "line 4\n", "mine"]);

        let mut log = LogFile::open(&path, None).unwrap();
        log.write_line(b"without limits\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "line 4\nwithout limits\n");
    }
}
