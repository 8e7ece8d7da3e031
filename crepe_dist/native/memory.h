#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

// Page-aligned array that only grows; new memory is zero.
template <class T> class Buffer {
  public:
    T* need(size_t count) {
        if (count > size_) {
            memory_.reset();
            size_t bytes = (count * sizeof(T) + 4095) / 4096 * 4096;
            memory_.reset(static_cast<T*>(std::aligned_alloc(4096, bytes)));
            size_ = memory_ ? count : 0;
            if (!memory_) throw std::bad_alloc();
            std::memset(static_cast<void*>(memory_.get()), 0, bytes);
        }
        return memory_.get();
    }
    T* get() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(T* pointer) const { std::free(pointer); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t size_ = 0;
};
