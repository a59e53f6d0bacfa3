import CLinux
public import CMachnetABI
public import MachnetChannel

/// The daemon's own hold on the directory: the only writable mapping of it, engine threads included.
///
/// All changes are made by the control thread. Applications get a descriptor that cannot be mapped writable.
public final class DirectoryMemory: @unchecked Sendable {
  public let directory: Directory
  public let epoch: UInt64
  let readOnly: Descriptor
  private let memory: SharedMemory
  /// How many endpoints share a key of the local table.
  private var holders: [UInt64: Int] = [:]

  public init(config: Config, processors: Int) throws(SystemError) {
    memory = try SharedMemory(name: "machnet-directory", size: MN_DIRECTORY_SIZE, sealing: .futureWrites)
    readOnly = try Descriptor(
      mnc_reopen_read_only(memory.descriptor.number), "open shared memory again by /proc/self/fd")
    unsafe directory = Directory(unsafe: memory.base)
    epoch = try randomWord()
    let header = unsafe directory.header
    unsafe header.pointee.version = MN_ABI_VERSION
    unsafe header.pointee.size = UInt64(MN_DIRECTORY_SIZE)
    unsafe header.pointee.epoch = epoch
    unsafe header.pointee.engine_count = UInt32(config.engine.count)
    unsafe header.pointee.spin_nanoseconds = UInt32(config.waiting.spinMicroseconds * 1000)
    unsafe header.pointee.yield_while_spinning = config.waiting.yields(processors: processors) ? 1 : 0
    install(rules: config.rules)
    refreshHostAddresses()
    unsafe header.pointee.magic = MN_MAGIC
  }

  /// The directory that a daemon with this config would have, for questions about the config.
  public convenience init(config: Config) throws(SystemError) {
    try self.init(config: config, processors: 1)
    install(
      interfaces: config.interfaces.map {
        mn_interface(
          address: $0.prefix.address.value, mask: $0.prefix.mask, gateway: $0.gateway?.value ?? 0, mtu: UInt32($0.mtu ?? 1500))
      })
  }

  /// Fills the set that is not in use, then makes it the one in use.
  public func install(rules: [mn_rule]) {
    precondition(rules.count <= Int(MN_RULES_MAX))
    let next = directory.rulesGeneration &+ 1
    let set = Int(next & 1)
    let table = unsafe (memory.base + MN_DIRECTORY_RULES).assumingMemoryBound(to: mn_rule.self)
    for (index, rule) in rules.enumerated() { unsafe table[set * Int(MN_RULES_MAX) + index] = rule }
    if set == 0 {
      unsafe directory.header.pointee.rule_count.0 = UInt32(rules.count)
    } else {
      unsafe directory.header.pointee.rule_count.1 = UInt32(rules.count)
    }
    // Release: pairs with the acquire in `rulesGeneration`.
    unsafe mn_store_release_u32(memory.base + Int(MN_DIRECTORY_RULES_GENERATION), next)
  }

  /// Before the first application attaches.
  public func install(interfaces: [mn_interface]) {
    precondition(interfaces.count <= Int(MN_INTERFACES_MAX))
    let table = unsafe (memory.base + MN_DIRECTORY_INTERFACES).assumingMemoryBound(to: mn_interface.self)
    for (index, interface) in interfaces.enumerated() { unsafe table[index] = interface }
    unsafe directory.header.pointee.interface_count = UInt32(interfaces.count)
  }

  /// Writes down which addresses the host has now. A reader in between sees an address of before or of after; the
  /// count only grows past entries that are written.
  public func refreshHostAddresses() {
    var found = [UInt32](repeating: 0, count: Int(MN_HOST_ADDRESSES_MAX))
    let count = unsafe mnc_host_addresses(&found, Int32(found.count))
    guard count >= 0 else { return }
    let table = unsafe (memory.base + MN_DIRECTORY_HOST_ADDRESSES).assumingMemoryBound(to: UInt32.self)
    for index in 0..<Int(count) { unsafe mn_store_relaxed_u32(table + index, found[index]) }
    let word = unsafe memory.base + MemoryLayout<mn_directory>.offset(of: \.host_address_count)!
    unsafe mn_store_release_u32(word, UInt32(count))
  }

  /// Tells applications that the endpoints are about to go.
  public func markStopping() {
    unsafe mn_store_release_u32(memory.base + Int(MN_OFFSET_DIRECTORY_STOPPING), 1)
  }

  // MARK: Local endpoints

  /// Makes a key visible to applications, once however many endpoints share it.
  ///
  /// - Returns: false when the table is full.
  func enterLocal(_ key: UInt64) -> Bool {
    if let count = holders[key] {
      holders[key] = count + 1
      return true
    }
    guard directory.insertLocal(key, used: holders.count) else { return false }
    holders[key] = 1
    return true
  }

  /// Whether some endpoint has exactly this key.
  func isLocal(_ key: UInt64) -> Bool { holders[key] != nil }

  func leaveLocal(_ key: UInt64) {
    guard let count = holders[key] else { preconditionFailure("a key leaves as often as it entered") }
    holders[key] = count == 1 ? nil : count - 1
    if count == 1 { directory.removeLocal(key) }
  }
}
