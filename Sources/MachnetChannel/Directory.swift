public import CMachnetABI

/// The daemon's directory as everybody reads it: rules, interfaces, local endpoints, engine words.
///
/// An application maps it read-only. Nothing in it comes from another application, so its words are the daemon's own;
/// counts are clamped all the same, because a reader must not depend on the daemon's health for its own.
@safe
public struct Directory {
  @usableFromInline let base: UnsafeMutableRawPointer

  /// Safety: `base` is a mapping of `MN_DIRECTORY_SIZE` bytes that stays mapped while the value is in use.
  @inlinable
  public init(unsafe base: UnsafeMutableRawPointer) { unsafe self.base = base }

  @inlinable
  public var header: UnsafeMutablePointer<mn_directory> {
    unsafe base.assumingMemoryBound(to: mn_directory.self)
  }

  @inlinable
  public var isValid: Bool {
    unsafe header.pointee.magic == MN_MAGIC && header.pointee.version == MN_ABI_VERSION
      && header.pointee.size >= UInt64(MN_DIRECTORY_SIZE)
  }

  /// Acquire: pairs with the control thread's release when it has filled the other set.
  @inlinable @inline(__always)
  public var rulesGeneration: UInt32 {
    @_noLocks get { unsafe mn_load_acquire_u32(base + Int(MN_DIRECTORY_RULES_GENERATION)) }
  }

  /// 1 once the daemon is going down.
  @inlinable @inline(__always)
  public var isStopping: Bool {
    @_noLocks get { unsafe mn_load_relaxed_u32(base + Int(MN_OFFSET_DIRECTORY_STOPPING)) != 0 }
  }

  /// Moves on after an endpoint has left the table of local endpoints: while it stands still, what was found is there.
  @inlinable @inline(__always)
  public var departures: UInt32 {
    @_noLocks get { unsafe mn_load_acquire_u32(base + Int(MN_OFFSET_DIRECTORY_DEPARTURES)) }
  }

  /// The rule set of a generation.
  @inlinable @_noLocks
  public func rules(generation: UInt32) -> RuleSet {
    let set = Int(generation & 1)
    let stated = unsafe set == 0 ? header.pointee.rule_count.0 : header.pointee.rule_count.1
    let rules = unsafe (base + MN_DIRECTORY_RULES).assumingMemoryBound(to: mn_rule.self)
    return unsafe RuleSet(unsafe: rules + set * Int(MN_RULES_MAX), count: Int(min(stated, MN_RULES_MAX)))
  }

  @inlinable @_noLocks
  public func engineWord(_ engine: UInt32) -> UnsafeMutableRawPointer {
    unsafe base + MN_DIRECTORY_ENGINES + Int(engine % MN_ENGINES_MAX)
      * MemoryLayout<mn_engine_word>.size
  }

  @inlinable
  public var interfaceCount: Int { @_noLocks get { unsafe Int(min(header.pointee.interface_count, MN_INTERFACES_MAX)) } }

  @inlinable @_noLocks
  public func interface(_ index: Int) -> mn_interface {
    precondition(index >= 0 && index < Int(MN_INTERFACES_MAX))
    return unsafe (base + MN_DIRECTORY_INTERFACES).assumingMemoryBound(to: mn_interface.self)[index]
  }

  /// The interface through which an engine reaches `address` (host byte order): on its subnet, else by a gateway.
  @inlinable @_noLocks
  public func route(to address: UInt32) -> Int? {
    var index = 0
    var byGateway: Int? = nil
    while index < interfaceCount {
      let interface = interface(index)
      if address & interface.mask == interface.address & interface.mask { return index }
      if interface.gateway != 0 && byGateway == nil { byGateway = index }
      index += 1
    }
    return byGateway
  }

  /// Whether an engine owns `address` (host byte order).
  @inlinable @_noLocks
  public func isEngineAddress(_ address: UInt32) -> Bool {
    var index = 0
    while index < interfaceCount {
      if interface(index).address == address { return true }
      index += 1
    }
    return false
  }

  /// Whether `address` (host byte order) is the host's own: loopback in any network namespace; the kernel's other
  /// addresses in the daemon's (index 0).
  @inlinable @_noLocks
  public func isHostAddress(_ address: UInt32, netns: UInt16) -> Bool {
    if address >> 24 == 127 { return true }
    if netns != 0 { return false }
    let count = unsafe Int(min(header.pointee.host_address_count, MN_HOST_ADDRESSES_MAX))
    let addresses = unsafe (base + MN_DIRECTORY_HOST_ADDRESSES).assumingMemoryBound(to: UInt32.self)
    var index = 0
    while index < count {
      if unsafe addresses[index] == address { return true }
      index += 1
    }
    return false
  }

  /// Whether an endpoint of this daemon receives what is sent to `address:port` inside `netns`: one bound to exactly
  /// that address, or one bound to the wildcard. Lock-free; an answer may be one control-thread step old.
  @inlinable @_noLocks
  public func hasLocalEndpoint(netns: UInt16, address: UInt32, port: UInt16) -> Bool {
    hasLocal(mn_local_key(netns, address, port)) || hasLocal(mn_local_key(netns, 0, port))
  }

  @inlinable @inline(__always) @_noLocks
  package func hasLocal(_ key: UInt64) -> Bool {
    var slot = mn_local_slot(key)
    var looked: UInt32 = 0
    while looked < MN_LOCAL_SLOTS {
      let found = unsafe mn_load_relaxed_u64(localSlot(slot))
      if found == key { return true }
      if found == 0 { return false }
      slot = (slot &+ 1) & (MN_LOCAL_SLOTS &- 1)
      looked &+= 1
    }
    return false
  }

  @inlinable @inline(__always) @_noLocks
  package func localSlot(_ slot: UInt32) -> UnsafeMutableRawPointer {
    unsafe base + MN_DIRECTORY_LOCAL + Int(slot & (MN_LOCAL_SLOTS &- 1)) * 8
  }
}

/// What only the daemon's control thread does to the directory.
extension Directory {
  /// Enters a key once. The caller counts how many endpoints share it.
  ///
  /// - Returns: false when the table is full (at most 3/4 of it is ever used, so that a look-up ends soon).
  public func insertLocal(_ key: UInt64, used: Int) -> Bool {
    if used >= Int(MN_LOCAL_SLOTS) / 4 * 3 { return false }
    var slot = mn_local_slot(key)
    var free: UInt32? = nil
    for _ in 0..<MN_LOCAL_SLOTS {
      let found = unsafe mn_load_relaxed_u64(localSlot(slot))
      if found == key { return true }
      if found == UInt64.max && free == nil { free = slot }
      if found == 0 {
        free = free ?? slot
        break
      }
      slot = (slot &+ 1) & (MN_LOCAL_SLOTS &- 1)
    }
    guard let free else { return false }
    unsafe mn_store_release_u64(localSlot(free), key)
    return true
  }

  /// Takes a key out. Slots before an empty one become empty again, so that tombstones do not pile up.
  public func removeLocal(_ key: UInt64) {
    var slot = mn_local_slot(key)
    for _ in 0..<MN_LOCAL_SLOTS {
      let found = unsafe mn_load_relaxed_u64(localSlot(slot))
      if found == 0 { return }
      if found == key { break }
      slot = (slot &+ 1) & (MN_LOCAL_SLOTS &- 1)
    }
    guard unsafe mn_load_relaxed_u64(localSlot(slot)) == key else { return }
    unsafe mn_store_release_u64(localSlot(slot), UInt64.max)
    unsafe mn_store_release_u32(base + Int(MN_OFFSET_DIRECTORY_DEPARTURES), departures &+ 1)
    let next = (slot &+ 1) & (MN_LOCAL_SLOTS &- 1)
    guard unsafe mn_load_relaxed_u64(localSlot(next)) == 0 else { return }
    // A tombstone before an empty slot ends no probe sequence early: it may be emptied, and so may those before it.
    while unsafe mn_load_relaxed_u64(localSlot(slot)) == UInt64.max {
      unsafe mn_store_release_u64(localSlot(slot), 0)
      slot = (slot &- 1) & (MN_LOCAL_SLOTS &- 1)
    }
  }
}
