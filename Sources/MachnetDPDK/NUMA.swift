import CNuma

/// Where memory and CPUs are. On a machine with one node, nothing of it does anything.
public enum NUMA {
  public static var isAvailable: Bool { mn_numa_is_available() }

  /// - Returns: nil where the machine does not say.
  public static func node(ofCPU cpu: Int) -> Int? {
    let node = mn_numa_node_of_cpu(Int32(cpu))
    return node < 0 ? nil : Int(node)
  }

  /// Memory that the calling thread touches first comes from `node` while there is some; nil: from where it runs.
  public static func prefer(node: Int?) { mn_numa_prefer(Int32(node ?? -1)) }

  /// Keeps the calling thread on the CPUs of `node`.
  ///
  /// - Returns: whether it worked.
  @discardableResult
  public static func run(onNode node: Int) -> Bool { mn_numa_run_on(Int32(node)) == 0 }
}
