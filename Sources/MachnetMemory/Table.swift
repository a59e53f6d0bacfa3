import CLinux

/// A table of fixed size, made of zeroed pages that cost nothing until they are touched. Indices are checked.
/// Access is transparent because a generic call, which a debug build would make of it, may lock or allocate.
///
/// Its elements are plain data that are valid when all their bytes are zero or that the owner writes before it
/// reads them. Whoever makes a table releases it.
@safe
public struct Table<Element: ~Copyable> {
  /// Safety: `count` elements, mapped by `init` until `release`.
  public let base: UnsafeMutablePointer<Element>
  public let count: Int

  public init(count: Int) {
    guard let memory = unsafe mn_linux_map(max(1, count) * MemoryLayout<Element>.stride) else {
      preconditionFailure("no memory for an engine's tables")
    }
    unsafe base = memory.assumingMemoryBound(to: Element.self)
    self.count = count
  }

  public func release() { unsafe mn_linux_unmap(base, max(1, count) * MemoryLayout<Element>.stride) }

  public subscript(index: UInt32) -> Element {
    @_transparent unsafeAddress {
      precondition(Int(index) < count)
      return unsafe UnsafePointer(base + Int(index))
    }
    @_transparent nonmutating unsafeMutableAddress {
      precondition(Int(index) < count)
      return unsafe base + Int(index)
    }
  }

  public subscript(index: UInt16) -> Element {
    @_transparent unsafeAddress {
      precondition(Int(index) < count)
      return unsafe UnsafePointer(base + Int(index))
    }
    @_transparent nonmutating unsafeMutableAddress {
      precondition(Int(index) < count)
      return unsafe base + Int(index)
    }
  }

  public subscript(index: Int) -> Element {
    @_transparent unsafeAddress {
      precondition(UInt(bitPattern: index) < UInt(bitPattern: count))
      return unsafe UnsafePointer(base + index)
    }
    @_transparent nonmutating unsafeMutableAddress {
      precondition(UInt(bitPattern: index) < UInt(bitPattern: count))
      return unsafe base + index
    }
  }

  /// An element's place, for code that changes two elements at a time.
  @_transparent
  public func pointer(_ index: UInt32) -> UnsafeMutablePointer<Element> {
    precondition(Int(index) < count)
    return unsafe base + Int(index)
  }
}
