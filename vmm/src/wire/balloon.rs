//! The balloon, which needs nothing of the host but the guest's memory.

use std::time::Duration;

use api::config::BalloonConfig;
use devices::virtio::balloon::{Balloon, BalloonError, BalloonSetup};
use devices::virtio::mem::MemHandle;

/// A fresh balloon for memory in pages of `page_size` bytes, part of which belongs to the device `mem`.
///
/// # Errors
///
/// The size cannot be, or the host gives no eventfd.
pub fn device(
    config: &BalloonConfig,
    page_size: u64,
    mem: Option<MemHandle>,
) -> Result<Balloon, BalloonError> {
    let BalloonConfig {
        size,
        deflate_on_oom,
        free_page_reporting,
        stats_polling_interval_s,
        id,
        // Only at their defaults.
        iommu: _,
        pci_segment: _,
        pci_device_id: _,
    } = config;
    let interval = Duration::from_secs((*stats_polling_interval_s).into());
    Balloon::new(BalloonSetup {
        name: format!("virtio-{}", id.as_deref().unwrap_or("balloon")),
        size: size.bytes(),
        deflate_on_oom: *deflate_on_oom,
        free_page_reporting: *free_page_reporting,
        statistics_interval: (!interval.is_zero()).then_some(interval),
        page_size,
        mem,
    })
}

#[cfg(test)]
mod tests {
    use devices::virtio::VirtioDevice;

    use super::*;

    #[test]
    fn balloon_is_as_it_is_configured() {
        let config: BalloonConfig = "size=64M,deflate_on_oom=on,id=b".parse().unwrap();
        let balloon = device(&config, 4096, None).unwrap();
        assert_eq!(balloon.name(), "virtio-b");
        assert_eq!(balloon.handle().target(), 64 << 20);
        // VIRTIO_BALLOON_F_STATS_VQ and VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
        assert_eq!(balloon.features() & 0x3f, 0b110);
        let config: BalloonConfig = "free_page_reporting=on".parse().unwrap();
        let balloon = device(&config, 4096, None).unwrap();
        assert_eq!(balloon.features() & 0x3f, 0b11_0010);
    }
}
