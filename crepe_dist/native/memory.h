// Memory of the kernels: buffers that grow, and prefetching of cache lines.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

// Prefetches a cache line that will be written. PREFETCHW requests the line in the exclusive state. After a plain
// prefetch, the first write would have to invalidate the copies of other cores. GCC generates PREFETCHW only if
// -mprfchw is given, hence the asm statement.
inline void prefetch_line_for_write(const void* address) {
#if defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(address)));
#else
    __builtin_prefetch(address, 1, 2);
#endif
}

// Page-aligned array that only grows. New memory is zero; growing discards the old contents.
//
// Arrays of at least 4 MB are backed by huge pages (madvise(2), MADV_HUGEPAGE). Their rows are read in random order,
// and huge pages reduce the misses of the address translation cache (TLB).
template <class T> class Buffer {
  public:
    // Returns memory for at least `count` elements.
    T* reserve(size_t count) {
        if (count > size_) {
            memory_.reset();
            const size_t page = count * sizeof(T) < 2 * HUGE_PAGE ? 4096 : HUGE_PAGE;
            const size_t bytes = (count * sizeof(T) + page - 1) / page * page;
            memory_.reset(static_cast<T*>(std::aligned_alloc(page, bytes)));
            size_ = memory_ ? count : 0;
            if (!memory_) throw std::bad_alloc();
            if (page == HUGE_PAGE) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
            std::memset(static_cast<void*>(memory_.get()), 0, bytes);
        }
        return memory_.get();
    }
    T* get() const { return memory_.get(); }

  private:
    static constexpr size_t HUGE_PAGE = 2 << 20;

    struct Free {
        void operator()(T* pointer) const { std::free(pointer); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t size_ = 0;
};
