public import CMachnetABI

extension Config.Flow {
  /// The line as applications read it from the directory.
  public var rule: mn_rule {
    var rule = mn_rule()
    rule.local_network = local.prefix.network
    rule.local_mask = local.prefix.mask
    rule.local_port_low = local.ports.lowerBound
    rule.local_port_high = local.ports.upperBound
    rule.remote_network = remote.prefix.network
    rule.remote_mask = remote.prefix.mask
    rule.remote_port_low = remote.ports.lowerBound
    rule.remote_port_high = remote.ports.upperBound
    rule.path = UInt8(path == .machnet ? MN_PATH_MACHNET : MN_PATH_KERNEL)
    rule.transport = UInt8(transport == .machnet ? MN_TRANSPORT_MACHNET : MN_TRANSPORT_UDP)
    rule.on_engine_loss = UInt8(onEngineLoss == .error ? MN_LOSS_ERROR : MN_LOSS_KERNEL)
    rule.line = UInt32(clamping: line)
    // The reader keeps names below MN_PROGRAM_MAX, so a NUL always follows.
    precondition(program.utf8.count < Int(MN_PROGRAM_MAX))
    unsafe withUnsafeMutableBytes(of: &rule.program) { unsafe $0.copyBytes(from: program.utf8) }
    return rule
  }
}

extension Config {
  /// The allowlist as applications read it; at most `MN_RULES_MAX`, in the file's order.
  public var rules: [mn_rule] { flows.map(\.rule) }
}
