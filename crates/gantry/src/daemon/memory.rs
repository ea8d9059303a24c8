//! What the daemon frees goes back to the machine.
//!
//! The allocator keeps what was freed for later, and the more often something large was freed, the larger is what it
//! keeps: after 500 MB of objects had come and gone, 700 MB stayed. So large blocks are always mapped by themselves,
//! which gives them back at once, and what else is free is given back now and then.

use std::time::Duration;

use lifecycle::Scope;
use nix::libc;

/// Blocks from this size on are mapped by themselves. Setting it also keeps the allocator from raising it.
const MAPPED_BYTES_MIN: libc::c_int = 128 * 1024;
/// Heaps beside one another: each keeps free memory of its own.
const HEAPS_MAX: libc::c_int = 4;
/// How often free memory is looked at, and from how many bytes on it is given back.
const EVERY: Duration = Duration::from_secs(15);
const FREE_BYTES_MAX: usize = 8 << 20;

/// Before the first thread is started.
pub(super) fn configure() {
    // SAFETY: mallopt(3) only sets the allocator's parameters.
    let set = unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) != 0
            && libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) != 0
    };
    if !set {
        tracing::warn!("the allocator takes no parameters: the daemon may hold more memory than it needs");
    }
}

/// Gives free memory back while the scope lasts, that of old events of `objects` too.
pub(super) fn give_back(objects: store::Store, scope: &Scope) {
    scope.spawn("memory", async move {
        let mut tick = tokio::time::interval(EVERY);
        loop {
            tick.tick().await;
            let objects = objects.clone();
            // It walks every heap: not on a thread that serves.
            let freeing = tokio::task::spawn_blocking(move || {
                objects.forget_old_events();
                trim();
            });
            let _ = freeing.await;
        }
    });
}

fn trim() {
    // SAFETY: both only look at, and give back, what the allocator itself holds free.
    unsafe {
        if libc::mallinfo2().fordblks > FREE_BYTES_MAX {
            libc::malloc_trim(0);
        }
    }
}
