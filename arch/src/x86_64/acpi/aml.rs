//! AML objects that the tables are made of.

use acpi_tables::aml::{Device, Method, Name, Path};
use acpi_tables::{Aml, AmlSink};

/// AML that is made already.
pub(super) struct Raw(pub(super) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

pub(super) fn to_bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

pub(super) fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(path), value)
}

pub(super) fn device(path: &str, children: &[&dyn Aml]) -> Vec<u8> {
    to_bytes(&Device::new(Path::new(path), children.to_vec()))
}

/// A method that can be called on two threads at once.
pub(super) fn method(path: &str, args: u8, body: &[&dyn Aml]) -> Raw {
    let method = Method::new(Path::new(path), args, false, body.to_vec());
    Raw(to_bytes(&method))
}

/// A method that runs on one thread at a time.
pub(super) fn serialized(path: &str, args: u8, body: &[&dyn Aml]) -> Raw {
    let method = Method::new(Path::new(path), args, true, body.to_vec());
    Raw(to_bytes(&method))
}
