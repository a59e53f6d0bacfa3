import CDPDK
import Glibc

/// DPDK's environment abstraction layer. There is one per process; it cannot be started again after it has failed or
/// was stopped.
public enum EAL {
  public struct Options: Sendable, Equatable {
    /// Devices on the PCI bus that are to be taken, `domain:bus:device.function[,key=value]...`. Empty: the bus is not looked at.
    public var pciAddresses: [String] = []
    /// UUIDs of devices on the VMBus. DPDK 22.11 takes every one there that is bound to uio_hv_generic, named or not.
    public var vmbusDevices: [String] = []
    /// For packets and the drivers' own, megabytes.
    public var memoryMegabytes = 128
    /// Take hugepages where enough are free.
    public var usesHugepages = true
    /// The least severe messages that go to standard error: DPDK's word for it.
    public var logLevel = "warning"

    public init() {}
  }

  /// Starts the layer: nothing of it is shared with other processes, and no thread of the caller is pinned.
  ///
  /// - Throws: EALREADY the second time, ENOMEM where devices on the VMBus find no hugepages, else what `rte_eal_init` says.
  public static func start(_ options: Options = Options()) throws(DPDKError) {
    let hugepages = options.usesHugepages && freeHugepageMegabytes() >= options.memoryMegabytes
    // netvsc tells the hypervisor page numbers of the VM's memory (hn_fill_sg), which only hugepages let DPDK know for certain.
    guard hugepages || options.vmbusDevices.isEmpty else {
      throw DPDKError(ENOMEM, "start DPDK for the VMBus, whose driver wants hugepages, while too few are free")
    }
    var arguments = unsafe arguments(options, hugepages: hugepages).map { unsafe strdup($0) }
    // The layer keeps pointers to them: they are never freed.
    let status = unsafe arguments.withUnsafeMutableBufferPointer {
      unsafe mn_dpdk_start(Int32($0.count), $0.baseAddress)
    }
    try check(status, "start DPDK" + (hugepages ? "" : " without hugepages"))
  }

  /// Gives everything back. All ports are to be closed before.
  public static func stop() { _ = mn_dpdk_stop() }

  /// Lets the calling thread use the packet pools' per-thread caches. Any thread may use the pools without it, slowly.
  ///
  /// - Returns: false when 128 threads have done so already.
  @discardableResult
  public static func adoptThread() -> Bool { mn_dpdk_adopt_thread() == 0 }

  /// The calling thread ends, or will not touch packets again.
  public static func releaseThread() { mn_dpdk_release_thread() }

  package static func arguments(_ options: Options, hugepages: Bool) -> [String] {
    // One logical core on every CPU that we have: the layer pins nobody, and threads are ours to place.
    var arguments = ["machnet", "--lcores", "0@(\(cpuList()))", "--no-telemetry"]
    arguments += ["--file-prefix", "machnet-\(getpid())", "--log-level", "*:\(options.logLevel)"]
    if options.pciAddresses.isEmpty { arguments += ["--no-pci"] }
    if !options.vmbusDevices.isEmpty {
      arguments += ["--iova-mode", "pa"]
    } else if options.pciAddresses.isEmpty {
      // Without a device that does DMA, physical addresses mean nothing.
      arguments += ["--iova-mode", "va"]
    }
    for address in options.pciAddresses { arguments += ["-a", address] }
    for uuid in options.vmbusDevices { arguments += ["-a", "vmbus:\(uuid)"] }
    arguments += ["-m", "\(options.memoryMegabytes)"]
    // Nothing is shared and nothing is left behind, in either kind of memory; without hugepages the layer says it so.
    arguments += hugepages ? ["--in-memory"] : ["--no-huge", "--no-shconf"]
    return arguments
  }

  /// The CPUs that the calling thread may use, as `0,2,5`.
  private static func cpuList() -> String {
    (0..<UInt32(1024)).filter(mn_dpdk_may_use_cpu).map(String.init).joined(separator: ",")
  }

  /// Of all sizes together.
  package static func freeHugepageMegabytes(under directory: String = "/sys/kernel/mm/hugepages") -> Int {
    guard let stream = unsafe opendir(directory) else { return 0 }
    defer { unsafe closedir(stream) }
    var kilobytes = 0
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      let prefix = "hugepages-"
      guard name.hasPrefix(prefix), name.hasSuffix("kB"), let size = Int(name.dropFirst(prefix.count).dropLast(2)) else {
        continue
      }
      kilobytes += size * (number(inFile: "\(directory)/\(name)/free_hugepages") ?? 0)
    }
    return kilobytes / 1024
  }

  private static func number(inFile path: String) -> Int? {
    let file = unsafe open(path, O_RDONLY | O_CLOEXEC)
    guard file >= 0 else { return nil }
    defer { close(file) }
    var digits = [UInt8](repeating: 0, count: 32)
    let count = unsafe read(file, &digits, digits.count)
    return Int(String(decoding: digits.prefix(max(0, count)).prefix { $0 >= 48 && $0 <= 57 }, as: UTF8.self))
  }
}
