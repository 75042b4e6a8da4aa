//! Guest RAM: host memory, and the slots that show it to the guest.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use devices::memory::Ram;
use kvm_bindings::kvm_userspace_memory_region;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap, MmapRegion,
};

use super::KvmError;
use super::vm::Vm;

/// Where guest RAM comes from and how the host treats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing {
    /// A memfd that other processes can map too, instead of anonymous memory.
    pub shared: bool,
    /// Huge pages.
    pub huge_pages: Option<HugePages>,
    /// Every page is there before the guest runs.
    pub prefault: bool,
    /// The host may merge equal pages (KSM).
    pub mergeable: bool,
    /// Huge pages are taken out of the pool at once, so that none is missing later.
    pub reserve: bool,
    /// The host may use transparent huge pages.
    pub transparent_huge_pages: bool,
}

impl Default for Backing {
    /// Anonymous memory in small pages, as it is touched.
    fn default() -> Self {
        Self {
            shared: false,
            huge_pages: None,
            prefault: false,
            mergeable: false,
            reserve: true,
            transparent_huge_pages: false,
        }
    }
}

impl Backing {
    /// Size of the pages in bytes, as far as it is known without asking the host: a huge page of the host's default size
    /// is taken for one of 2 MiB.
    pub fn page_size(&self) -> u64 {
        match self.huge_pages {
            None => 4096,
            Some(HugePages::Default) => 2 << 20,
            Some(HugePages::Size(size)) => size,
        }
    }
}

/// Pages from the host's hugetlb pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Of the host's default size.
    Default,
    /// Of this size in bytes, a power of two.
    Size(u64),
}

impl HugePages {
    /// The size as mmap and memfd_create take it: its logarithm in the upper bits of the flags.
    fn flags(self) -> i32 {
        match self {
            Self::Default => 0,
            Self::Size(bytes) => (bytes.trailing_zeros() as i32) << libc::MAP_HUGE_SHIFT,
        }
    }
}

/// Guest RAM that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file behind shared memory.
    #[error("--memory: cannot create {len} bytes of shared memory{}", pool(.backing))]
    Memfd {
        /// Bytes asked for.
        len: u64,
        /// As asked for.
        backing: Backing,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The mapping.
    #[error("--memory: cannot map {len} bytes of guest memory{}", pool(.backing))]
    Map {
        /// Bytes asked for.
        len: usize,
        /// As asked for.
        backing: Backing,
        /// What the host said.
        #[source]
        source: MmapRegionError,
    },
    /// The host has fewer pages than were asked for.
    #[error("--memory prefault=on: cannot take {len} bytes of guest memory from the host")]
    Prefault {
        /// Bytes asked for.
        len: usize,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host does not know the treatment.
    #[error("--memory: cannot set {advice} on guest memory")]
    Advice {
        /// The treatment, as madvise names it.
        advice: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A region at an impossible address.
    #[error("guest memory regions do not fit together")]
    Regions(#[from] GuestRegionCollectionError),
    /// KVM takes no more memory.
    #[error("KVM does not take the guest memory at {address:#x}")]
    Slot {
        /// First guest physical address of the region.
        address: u64,
        /// What KVM said.
        #[source]
        source: KvmError,
    },
}

fn pool(backing: &Backing) -> &'static str {
    match backing.huge_pages {
        Some(_) => " (are there enough free huge pages of that size? see /proc/meminfo)",
        None => "",
    }
}

/// Maps guest RAM for `regions`, pairs of guest physical address and length in bytes.
///
/// # Errors
///
/// [`MemoryError`]; nothing stays mapped.
pub fn allocate(regions: &[(GuestAddress, usize)], backing: Backing) -> Result<Ram, MemoryError> {
    let file = if backing.shared {
        let len = regions.iter().map(|(_, len)| *len as u64).sum();
        Some(Arc::new(memfd(len, backing)?))
    } else {
        None
    };
    let mut offset = 0;
    let mut mapped = Vec::with_capacity(regions.len());
    for (address, len) in regions {
        let region = map(*len, file.as_ref().map(|file| (file, offset)), backing)?;
        offset += *len as u64;
        let region = GuestRegionMmap::new(region, *address)
            .ok_or(GuestRegionCollectionError::MemoryRegionOverlap)?;
        mapped.push(region);
    }
    Ok(Ram::from_regions(mapped)?)
}

fn map(
    len: usize,
    file: Option<(&Arc<File>, u64)>,
    backing: Backing,
) -> Result<MmapRegion, MemoryError> {
    let mut flags = match file {
        Some(_) => libc::MAP_SHARED,
        None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    };
    match backing.huge_pages {
        // Pages of the pool are reserved now, so that a guest never dies of a page that is not there.
        Some(pages) if file.is_none() => flags |= libc::MAP_HUGETLB | pages.flags(),
        Some(_) => {}
        None => flags |= libc::MAP_NORESERVE,
    }
    if !backing.reserve {
        flags |= libc::MAP_NORESERVE;
    }
    let mut builder = MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(flags)
        .with_hugetlbfs(backing.huge_pages.is_some());
    if let Some((file, offset)) = file {
        builder = builder.with_file_offset(FileOffset::from_arc(Arc::clone(file), offset));
    }
    let gap = AlignedGap::make(len);
    let region = builder.build().map_err(|source| MemoryError::Map {
        len,
        backing,
        source,
    })?;
    drop(gap);
    advise(&region, libc::MADV_DONTFORK, "MADV_DONTFORK")?;
    advise(&region, libc::MADV_DONTDUMP, "MADV_DONTDUMP")?;
    if backing.mergeable {
        advise(&region, libc::MADV_MERGEABLE, "MADV_MERGEABLE")?;
    }
    if backing.huge_pages.is_none() {
        let (advice, name) = if backing.transparent_huge_pages {
            (libc::MADV_HUGEPAGE, "MADV_HUGEPAGE")
        } else {
            (libc::MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE")
        };
        // Allowed, not demanded: a host without them serves small pages either way.
        if let Err(error) = advise(&region, advice, name) {
            tracing::debug!(%error, "no transparent huge pages");
        }
    }
    if backing.prefault {
        // Last: the pages then have the size that was advised.
        populate(&region).map_err(|source| MemoryError::Prefault { len, source })?;
    }
    Ok(region)
}

/// A gap in the address space that begins where a huge page can, and is the one that the host fills next.
///
/// KVM maps a huge page to the guest only if guest and host address have the same offset in it, and hosts before Linux
/// 6.7 place a mapping on any page. Where the gap is not filled after all, only that is lost.
struct AlignedGap {
    /// What is left of the reservation, before and after the gap: address and length in bytes.
    edges: [(usize, usize); 2],
}

/// Size of a huge page in bytes.
const HUGE_PAGE: usize = 2 << 20;

impl AlignedGap {
    /// A gap of `len` bytes, if the host has room for it.
    fn make(len: usize) -> Option<Self> {
        let reserved = len.checked_add(HUGE_PAGE)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping that replaces no other.
        #[expect(unsafe_code)]
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                reserved,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return None;
        }
        let start = start as usize;
        let gap = start.next_multiple_of(HUGE_PAGE);
        let end = gap + len;
        unmap(gap, len);
        Some(Self {
            edges: [(start, gap - start), (end, start + reserved - end)],
        })
    }
}

impl Drop for AlignedGap {
    fn drop(&mut self) {
        for (address, len) in self.edges {
            unmap(address, len);
        }
    }
}

/// Gives back part of a reservation that nobody was told of.
fn unmap(address: usize, len: usize) {
    if len > 0 {
        // SAFETY: the range is part of a reservation made here, is given back once, and no reference into it exists.
        // Failing leaves it reserved, which costs nothing but addresses.
        #[expect(unsafe_code)]
        unsafe {
            libc::munmap(address as *mut libc::c_void, len)
        };
    }
}

fn advise(region: &MmapRegion, advice: i32, name: &'static str) -> Result<(), MemoryError> {
    madvise(region, advice).map_err(|source| MemoryError::Advice {
        advice: name,
        source,
    })
}

/// Takes every page of `region` from the host, ready to be written to.
fn populate(region: &MmapRegion) -> io::Result<()> {
    madvise(region, libc::MADV_POPULATE_WRITE)
}

fn madvise(region: &MmapRegion, advice: i32) -> io::Result<()> {
    // SAFETY: the range is exactly one mapping that `region` owns, and none of the advices used here drops its contents.
    #[expect(unsafe_code)]
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), advice) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn memfd(len: u64, backing: Backing) -> Result<File, MemoryError> {
    let mut flags = libc::MFD_CLOEXEC;
    if let Some(pages) = backing.huge_pages {
        // MFD_HUGE_SHIFT is MAP_HUGE_SHIFT.
        flags |= libc::MFD_HUGETLB | pages.flags() as u32;
    }
    let failed = |source| MemoryError::Memfd {
        len,
        backing,
        source,
    };
    // SAFETY: the name is a string that ends in NUL.
    #[expect(unsafe_code)]
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: memfd_create returned this descriptor, and nobody else has it.
    #[expect(unsafe_code)]
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).map_err(failed)?;
    Ok(file)
}

/// Shows `ram` to the guest of `vm`, in slots from 0 on.
///
/// # Errors
///
/// KVM refused a slot.
pub fn register(vm: &Vm, ram: &Ram) -> Result<(), MemoryError> {
    (0..)
        .zip(ram.iter())
        .try_for_each(|(slot, region)| register_region(vm, slot, region))
}

/// Shows `region` to the guest of `vm` in `slot`, which is empty.
///
/// # Errors
///
/// KVM refused the slot.
pub fn register_region(
    vm: &Vm,
    slot: u32,
    region: &GuestRegionMmap<()>,
) -> Result<(), MemoryError> {
    let address = region.start_addr().0;
    set_slot(
        vm,
        kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        },
    )
    .map_err(|source| MemoryError::Slot { address, source })
}

/// Takes away what the guest of `vm` sees by `slot`.
///
/// # Errors
///
/// KVM refused; the guest still sees it.
pub fn unregister_region(vm: &Vm, slot: u32) -> Result<(), KvmError> {
    set_slot(
        vm,
        kvm_userspace_memory_region {
            slot,
            ..Default::default()
        },
    )
}

fn set_slot(vm: &Vm, slot: kvm_userspace_memory_region) -> Result<(), KvmError> {
    // SAFETY: the region is mapped for as long as the machine's map of memory or a copy of it is held, which is until its
    // slot was emptied or its vCPUs have ended; KVM itself follows the mapping and never touches memory that is unmapped.
    #[expect(unsafe_code)]
    unsafe { vm.fd().set_user_memory_region(slot) }
        .map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const REGIONS: [(GuestAddress, usize); 2] =
        [(GuestAddress(0), 2 << 20), (GuestAddress(4 << 30), 1 << 20)];

    #[test]
    fn anonymous_memory_has_no_file() {
        let ram = allocate(&REGIONS, Backing::default()).unwrap();
        assert_eq!(ram.num_regions(), 2);
        assert!(ram.iter().all(|region| region.file_offset().is_none()));
        ram.write_obj(7_u64, GuestAddress((4 << 30) + 8)).unwrap();
        assert_eq!(ram.read_obj::<u64>(GuestAddress((4 << 30) + 8)).unwrap(), 7);
    }

    #[test]
    fn shared_memory_is_one_file_with_regions_one_after_another() {
        use std::os::unix::fs::FileExt;
        let backing = Backing {
            shared: true,
            ..Backing::default()
        };
        let ram = allocate(&REGIONS, backing).unwrap();
        ram.write_obj(0x55_u8, GuestAddress(4 << 30)).unwrap();
        let region = ram.iter().nth(1).unwrap();
        let offset = region.file_offset().unwrap();
        assert_eq!(offset.start(), 2 << 20);
        let mut byte = [0];
        offset.file().read_exact_at(&mut byte, 2 << 20).unwrap();
        assert_eq!(byte, [0x55]);
    }

    #[test]
    fn memory_begins_where_a_huge_page_can() {
        let ram = allocate(&[(GuestAddress(0), 64 << 20)], Backing::default()).unwrap();
        let start = ram.iter().next().unwrap().as_ptr() as usize;
        assert!(start.is_multiple_of(HUGE_PAGE));
    }

    #[test]
    fn huge_pages_that_the_host_does_not_have_are_an_error() {
        let backing = Backing {
            // No processor has pages of this size.
            huge_pages: Some(HugePages::Size(1 << 40)),
            ..Backing::default()
        };
        let error = allocate(&REGIONS, backing).unwrap_err().to_string();
        assert!(error.contains("free huge pages"), "{error}");
    }

    /// The flags of the mapping at `address`, as the kernel tells them.
    fn mapping_flags(address: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line
                .split_once(' ')
                .and_then(|(range, _)| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            if let Some((start, end)) = range.and_then(|(a, b)| number(a).zip(number(b))) {
                inside = (start..end).contains(&address);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.to_owned();
            }
        }
        panic!("nothing is mapped at {address:#x}");
    }

    #[test]
    fn transparent_huge_pages_are_allowed_or_forbidden() {
        for (allowed, flag) in [(true, "hg"), (false, "nh")] {
            let backing = Backing {
                transparent_huge_pages: allowed,
                ..Backing::default()
            };
            let ram = allocate(&[(GuestAddress(0), 4 << 20)], backing).unwrap();
            let flags = mapping_flags(ram.iter().next().unwrap().as_ptr() as usize);
            assert!(flags.split_whitespace().any(|word| word == flag), "{flags}");
        }
    }

    #[test]
    fn prefault_makes_every_page_resident() {
        let backing = Backing {
            prefault: true,
            ..Backing::default()
        };
        let ram = allocate(&[(GuestAddress(0), 1 << 20)], backing).unwrap();
        let mut pages = [0_u8; 256];
        let address = ram.iter().next().unwrap().as_ptr();
        // SAFETY: the range is the whole mapping, and there is one byte for each of its pages.
        #[expect(unsafe_code)]
        let result = unsafe { libc::mincore(address.cast(), 1 << 20, pages.as_mut_ptr()) };
        assert_eq!(result, 0);
        assert!(pages.iter().all(|page| page & 1 == 1));
    }
}
