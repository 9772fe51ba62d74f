//! Asking for memory before it is needed. With a thousand tunnels a packet's keys and rows are in no near cache, and a
//! thread that waits for each line in turn spends more time on that than on the packet. But it knows from a batch who
//! is next.

/// Bytes that the processor fetches at once.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Begin to fetch a value. It is not looked at, and nothing waits for it.
#[inline]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let start = std::ptr::from_ref(value).cast::<i8>();
        for offset in (0..size_of::<T>()).step_by(LINE) {
            // SAFETY: a hint to the processor, which neither reads nor faults whatever the address; this one is
            // inside a live value.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(offset)) };
        }
    }
    // Elsewhere the processor finds out by itself.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
