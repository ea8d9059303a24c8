//! Giving back what only the making of the container needed.

use std::ffi::{c_int, c_void};

use nix::libc;

/// Unmaps what is mapped of the binary's code and constants, and returns free heap. The kernel still has the code
/// in its cache: the few pages that the loop runs in come back when they are touched.
pub fn trim() {
    // SAFETY: the callback only reads what it is given. malloc_trim takes no pointer.
    unsafe {
        libc::dl_iterate_phdr(Some(unmap), std::ptr::null_mut());
        libc::malloc_trim(0);
    }
}

/// Segments that are not writable are exactly the file's bytes, so their pages may be dropped at any time. What is
/// read-only after relocation is in a writable segment, and stays.
unsafe extern "C" fn unmap(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    const PAGE: usize = 4096;
    // SAFETY: dl_iterate_phdr passes a valid description of a loaded object, and its program headers.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr as usize, std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)))
    };
    let constant =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(constant) {
        let begin = (base + header.p_vaddr as usize).next_multiple_of(PAGE);
        let end = (base + header.p_vaddr as usize + header.p_filesz as usize) / PAGE * PAGE;
        if begin < end {
            // SAFETY: a private mapping of a file that was never written to reads the same after it.
            unsafe { libc::madvise(begin as *mut c_void, end - begin, libc::MADV_DONTNEED) };
        }
    }
    0
}
