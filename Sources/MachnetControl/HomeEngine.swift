/// Which engines may serve a TX ring. Queues are dealt to engines in turn, so an engine need not have one everywhere.
enum HomeEngine {
  /// - Parameters:
  ///   - serving: for each engine the addresses of the interfaces that it has a queue on.
  ///   - interface: where the endpoint's datagrams leave; nil when that is not known (a wildcard without a peer).
  /// - Returns: numbers of engines, never none: those with a queue on the interface, else those that reach most
  ///   interfaces.
  static func candidates(serving: [[UInt32]], interface: UInt32?) -> [Int] {
    if let interface {
      let able = serving.indices.filter { serving[$0].contains(interface) }
      if !able.isEmpty { return able }
    }
    let most = serving.map { Set($0).count }.max() ?? 0
    return serving.indices.filter { Set(serving[$0]).count == most }
  }
}
