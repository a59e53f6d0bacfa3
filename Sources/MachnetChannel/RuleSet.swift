public import CMachnetABI

/// Which rules name a given program: one bit per rule, worked out once per process and generation, so that
/// classifying a datagram compares no strings.
public struct ProgramMask {
  @usableFromInline var words: InlineArray<16, UInt64> = .init(repeating: 0)
  /// Whether any rule of the mask leads away from the kernel.
  public fileprivate(set) var leadsToMachnet = false

  public init() {}

  @inlinable @inline(__always) @_noLocks
  public func contains(_ rule: Int) -> Bool {
    words[(rule >> 6) & 15] >> UInt64(rule & 63) & 1 != 0
  }

  fileprivate mutating func insert(_ rule: Int) {
    words[(rule >> 6) & 15] |= 1 << UInt64(rule & 63)
  }
}

/// A compiled allowlist. First match wins; no match means the kernel.
@safe
public struct RuleSet {
  @usableFromInline let rules: UnsafeMutablePointer<mn_rule>
  public let count: Int

  /// Safety: `count` rules lie at `rules`, mapped while the value is in use.
  @inlinable @inline(__always) @_noLocks
  public init(unsafe rules: UnsafeMutablePointer<mn_rule>, count: Int) {
    unsafe self.rules = rules
    self.count = count
  }

  @inlinable @_noLocks
  public func rule(_ index: Int) -> mn_rule {
    precondition(index >= 0 && index < count)
    return unsafe rules[index]
  }

  /// The first rule that a flow hits.
  ///
  /// - Parameters: addresses and ports in host byte order; a wildcard-bound socket passes the address that its
  ///   datagram will carry, or 0 when that is not known: then only rules for any local address match.
  @inlinable @_noLocks
  public func first(
    program: borrowing ProgramMask, localAddress: UInt32, localPort: UInt16, remoteAddress: UInt32, remotePort: UInt16
  ) -> Int? {
    var index = 0
    while index < count {
      if program.contains(index) {
        let rule = unsafe rules + index
        if unsafe remoteAddress & rule.pointee.remote_mask == rule.pointee.remote_network
          && remotePort >= rule.pointee.remote_port_low && remotePort <= rule.pointee.remote_port_high
          && localAddress & rule.pointee.local_mask == rule.pointee.local_network
          && localPort >= rule.pointee.local_port_low && localPort <= rule.pointee.local_port_high
        {
          return index
        }
      }
      index &+= 1
    }
    return nil
  }

  /// Whether some flow of a socket bound to `localAddress:localPort` (address 0: the wildcard) could be led to
  /// Machnet: then the socket is worth an endpoint from its bind on, so that it can receive before it sends.
  @_noLocks
  public func mayLeadToMachnet(program: borrowing ProgramMask, localAddress: UInt32, localPort: UInt16) -> Bool {
    var index = 0
    while index < count {
      if program.contains(index) {
        let rule = unsafe rules + index
        if unsafe rule.pointee.path == UInt8(MN_PATH_MACHNET)
          && (localAddress == 0 || localAddress & rule.pointee.local_mask == rule.pointee.local_network)
          && localPort >= rule.pointee.local_port_low && localPort <= rule.pointee.local_port_high
        {
          return true
        }
      }
      index &+= 1
    }
    return false
  }

  /// The rules that apply to a program.
  ///
  /// - Parameters: NUL-terminated names, at most `MN_PROGRAM_MAX` bytes each, any of which may fit (the executable's
  ///   file name, the name it was called by).
  public func mask(programs: UnsafePointer<CChar>, _ other: UnsafePointer<CChar>) -> ProgramMask {
    var mask = ProgramMask()
    for index in 0..<count {
      let rule = unsafe rules + index
      let pattern = unsafe UnsafeRawPointer(rule).advanced(by: Int(MN_OFFSET_RULE_PROGRAM))
        .assumingMemoryBound(to: CChar.self)
      if unsafe fits(pattern, programs) || fits(pattern, other) {
        mask.insert(index)
        if unsafe rule.pointee.path == UInt8(MN_PATH_MACHNET) { mask.leadsToMachnet = true }
      }
    }
    return mask
  }

  private func fits(_ pattern: UnsafePointer<CChar>, _ name: UnsafePointer<CChar>) -> Bool {
    if unsafe pattern[0] == 0 { return true }
    for index in 0..<Int(MN_PROGRAM_MAX) {
      let wanted = unsafe pattern[index]
      if wanted == 42 /* '*' */ { return true }
      if unsafe wanted != name[index] { return false }
      if wanted == 0 { return true }
    }
    return true
  }
}
