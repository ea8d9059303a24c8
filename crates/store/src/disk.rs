//! The file: two redb tables, described in `docs/format-store.md`.

use std::path::PathBuf;
use std::sync::Arc;

use imbl::OrdMap;
use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    TableError,
};

use crate::reserve::Reserve;
use crate::{Entry, Revision};

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const OBJECTS: TableDefinition<&str, &[u8]> = TableDefinition::new("objects");

/// The version of the format, in `meta` and as the first byte of each record.
const FORMAT: u8 = 1;
const RECORD_HEAD: usize = 9;

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store could not be opened")]
    Open(#[source] Box<redb::Error>),
    #[error("the store has format {found}, this program reads format {FORMAT}")]
    Format { found: u64 },
    #[error("the record of {key:?} is not whole")]
    Record { key: String },
    #[error("the folder {path} could not be made or synced", path = path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("the store's thread could not be started")]
    Thread(#[source] std::io::Error),
}

fn open_error(error: impl Into<redb::Error>) -> Error {
    Error::Open(Box::new(error.into()))
}

/// One key's new state.
pub(crate) struct Change {
    pub(crate) key: Arc<str>,
    pub(crate) entry: Option<Entry>,
}

type Open = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;

pub(crate) struct Disk {
    open: Open,
    reserve: Option<Reserve>,
    /// None after an I/O error, until it could be opened again.
    database: Option<Database>,
}

impl Disk {
    pub(crate) fn file(path: PathBuf, cache_bytes: usize, reserve_bytes: u64) -> Self {
        let reserve = Reserve::new(path.clone(), reserve_bytes);
        let open = move || Ok(Builder::new().set_cache_size(cache_bytes).create(&path)?);
        Disk { open: Box::new(open), reserve: Some(reserve), database: None }
    }

    /// Whether what can wait has to, for lack of space: asked before a write.
    pub(crate) fn is_short(&mut self) -> bool {
        let Some(reserve) = &mut self.reserve else { return false };
        if reserve.is_short() {
            reserve.keep();
        }
        reserve.is_short()
    }

    fn keep_reserve(&mut self) {
        if let Some(reserve) = &mut self.reserve {
            reserve.keep();
        }
    }

    pub(crate) fn backend<B: StorageBackend>(
        backend: impl Fn() -> std::io::Result<B> + Send + 'static,
        cache_bytes: usize,
    ) -> Self {
        Disk::new(Box::new(move || {
            let backend = backend().map_err(redb::Error::Io)?;
            Ok(Builder::new().set_cache_size(cache_bytes).create_with_backend(backend)?)
        }))
    }

    fn new(open: Open) -> Self {
        Disk { open, reserve: None, database: None }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.database.is_some()
    }

    /// Opens the file and reads it whole.
    pub(crate) fn load(&mut self) -> Result<(OrdMap<Arc<str>, Entry>, Revision), Error> {
        let database = (self.open)().map_err(open_error)?;
        let revision = match meta(&database).map_err(open_error)? {
            Some((format, revision)) if format == u64::from(FORMAT) => revision,
            Some((found, _)) => return Err(Error::Format { found }),
            None => {
                begin(&database).map_err(open_error)?;
                Revision(0)
            }
        };
        let transaction = database.begin_read().map_err(open_error)?;
        let table = transaction.open_table(OBJECTS).map_err(open_error)?;
        let mut entries = OrdMap::new();
        for row in table.iter().map_err(open_error)? {
            let (key, record) = row.map_err(open_error)?;
            let entry = decode(record.value()).ok_or_else(|| Error::Record { key: key.value().into() })?;
            entries.insert(Arc::from(key.value()), entry);
        }
        drop((table, transaction));
        self.database = Some(database);
        self.keep_reserve();
        Ok((entries, revision))
    }

    /// Opens the file again and answers the revision that it holds.
    pub(crate) fn reopen(&mut self) -> Result<Revision, redb::Error> {
        self.database = None;
        let database = (self.open)()?;
        let revision = meta(&database)?.map_or(Revision(0), |(_, revision)| revision);
        self.database = Some(database);
        self.keep_reserve();
        Ok(revision)
    }

    /// Makes the changes durable, all or none. After an error only `reopen` helps.
    pub(crate) fn commit(&mut self, revision: Revision, changes: &[Change]) -> Result<(), redb::Error> {
        let Some(database) = &self.database else { return Err(redb::Error::DatabaseClosed) };
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        transaction.set_quick_repair(true);
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            let mut record = Vec::new();
            for change in changes {
                match &change.entry {
                    Some(entry) => {
                        encode(entry, &mut record);
                        objects.insert(&*change.key, record.as_slice())?;
                    }
                    None => {
                        objects.remove(&*change.key)?;
                    }
                }
            }
            transaction.open_table(META)?.insert("revision", revision.0)?;
        }
        transaction.commit()?;
        self.keep_reserve();
        Ok(())
    }
}

/// Writes a store of its own to `path`, which must not exist: these entries, at that revision.
pub(crate) fn write_copy<'a>(
    path: &std::path::Path,
    revision: Revision,
    entries: impl Iterator<Item = (&'a str, &'a Entry)>,
) -> Result<(), redb::Error> {
    let database = Builder::new().create(path)?;
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(true);
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        let mut record = Vec::new();
        for (key, entry) in entries {
            encode(entry, &mut record);
            objects.insert(key, record.as_slice())?;
        }
        let mut table = transaction.open_table(META)?;
        table.insert("format", u64::from(FORMAT))?;
        table.insert("revision", revision.0)?;
    }
    transaction.commit()?;
    Ok(())
}

fn meta(database: &Database) -> Result<Option<(u64, Revision)>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(META) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(format) = table.get("format")? else { return Ok(None) };
    let revision = table.get("revision")?.map_or(0, |revision| revision.value());
    Ok(Some((format.value(), Revision(revision))))
}

fn begin(database: &Database) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_quick_repair(true);
    {
        let mut table = transaction.open_table(META)?;
        table.insert("format", u64::from(FORMAT))?;
        table.insert("revision", 0)?;
        transaction.open_table(OBJECTS)?;
    }
    transaction.commit()?;
    Ok(())
}

fn encode(entry: &Entry, record: &mut Vec<u8>) {
    record.clear();
    record.reserve(RECORD_HEAD + entry.value.len());
    record.push(FORMAT);
    record.extend_from_slice(&entry.revision.0.to_le_bytes());
    record.extend_from_slice(&entry.value);
}

fn decode(record: &[u8]) -> Option<Entry> {
    let (head, value) = record.split_at_checked(RECORD_HEAD)?;
    let (version, revision) = head.split_first()?;
    (*version == FORMAT).then_some(())?;
    let revision = u64::from_le_bytes(revision.try_into().ok()?);
    Some(Entry { value: value.into(), revision: Revision(revision) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_a_torn_one_does_not() {
        let entry = Entry { value: Arc::from(&b"{}"[..]), revision: Revision(7) };
        let mut record = Vec::new();
        encode(&entry, &mut record);
        assert_eq!(decode(&record), Some(entry));
        assert_eq!(decode(&record[..8]), None);
        record[0] = 9;
        assert_eq!(decode(&record), None);
    }
}
