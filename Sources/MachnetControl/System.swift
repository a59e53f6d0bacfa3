import CLinux
import Glibc

/// A call of the system that failed: what was being done, and the errno value.
public struct SystemError: Error, Equatable, CustomStringConvertible, Sendable {
  public let code: Int32
  public let doing: String

  public init(_ code: Int32, _ doing: String) {
    self.code = code
    self.doing = doing
  }

  public var description: String { "\(doing): \(unsafe String(cString: strerror(code)))" }
}

/// Results of the calls in machnet_control.h: a value, or a negated errno value.
@discardableResult
func check<Result: SignedInteger>(_ result: Result, _ doing: @autoclosure () -> String) throws(SystemError) -> Result {
  guard result < 0 else { return result }
  throw SystemError(Int32(-result), doing())
}

/// Owns a descriptor.
public final class Descriptor: Sendable {
  public let number: Int32
  /// Whose closes may be slow, and hold up nobody (`SlowClose`); nil: nobody's.
  private let client: UInt32?

  /// Takes `number` over, or throws the error that it is.
  ///
  /// - Parameter client: the user who decides what a close of it has to wait for.
  init(_ number: Int32, of client: UInt32? = nil, _ doing: @autoclosure () -> String) throws(SystemError) {
    self.number = try check(number, doing())
    self.client = client
  }

  deinit {
    if let client { SlowClose.shared.close(number, of: client) } else { mn_linux_close(number) }
  }
}

/// A memfd and this process's writable mapping of it. Unmapped and closed with the last reference.
@safe
final class SharedMemory: @unchecked Sendable {
  /// Safety: `size` bytes, mapped by `init`, unmapped by `deinit` and nowhere else.
  let base: UnsafeMutableRawPointer
  let size: Int
  let descriptor: Descriptor
  private let hasHugePages: Bool

  enum Sealing {
    /// Others may write, but nobody resizes.
    case size
    /// Nobody but this mapping writes.
    case futureWrites
  }

  /// - Parameters:
  ///   - size: bytes. Small pages cost nothing until they are touched; huge pages are all reserved here.
  ///   - hugePages: `size` is a multiple of their size.
  init(name: String, size: Int, sealing: Sealing, hugePages: Bool = false) throws(SystemError) {
    precondition(size > 0)
    self.size = size
    hasHugePages = hugePages
    descriptor = try unsafe Descriptor(
      mnc_memfd(name, UInt64(size), hugePages), "make \(size) bytes of shared memory")
    var error: Int32 = 0
    guard let base = unsafe mnc_map(descriptor.number, UInt64(size), true, &error) else {
      throw SystemError(error, "map \(size) bytes of shared memory")
    }
    unsafe self.base = base
    switch sealing {
    case .size: try check(mnc_seal_size(descriptor.number), "seal shared memory")
    case .futureWrites: try check(mnc_seal_future_write(descriptor.number), "seal shared memory")
    }
  }

  deinit { unsafe mn_linux_unmap(base, size) }

  /// Huge pages where plenty are free, and the size is rounded up to them; small pages otherwise.
  ///
  /// Plenty is twice what is needed: half of the free ones stay for packet pools and for others.
  static func preferringHugePages(name: String, size: Int, sealing: Sealing) throws(SystemError) -> SharedMemory {
    var available: UInt64 = 0
    let page = Int(unsafe mnc_huge_page_size(&available))
    if page > 0 {
      let pages = (size + page - 1) / page
      // Others may take them in between; then there are still small pages.
      if 2 * pages <= Int(clamping: available),
        let memory = try? SharedMemory(name: name, size: pages * page, sealing: sealing, hugePages: true)
      {
        return memory
      }
    }
    return try SharedMemory(name: name, size: size, sealing: sealing)
  }

  /// Makes whole pages zero and gives them back to the kernel. Huge pages are kept: a hole would lose its reservation,
  /// and an engine that touches it when the pool is empty would be killed.
  func punchHole(offset: UInt64, length: UInt64) {
    precondition(offset + length <= UInt64(size))
    if hasHugePages { return }
    _ = mnc_punch_hole(descriptor.number, offset, length)
  }
}

/// A sealed memfd with a text, for a reply.
func textMemory(_ text: String) throws(SystemError) -> Descriptor {
  let bytes = Array(text.utf8)
  let descriptor = try unsafe Descriptor(mnc_memfd("machnet-text", 0, false), "make shared memory")
  var written = 0
  while written < bytes.count {
    let count = unsafe bytes.withUnsafeBytes { bytes in
      unsafe write(descriptor.number, bytes.baseAddress! + written, bytes.count - written)
    }
    guard count > 0 else { throw SystemError(errno, "write \(bytes.count) bytes of shared memory") }
    written += count
  }
  try check(mnc_seal_write(descriptor.number), "seal shared memory")
  return descriptor
}

func randomWord() throws(SystemError) -> UInt64 {
  var word: UInt64 = 0
  try unsafe check(mnc_random(&word, 8), "ask the kernel for randomness")
  return word
}
