/// A call of DPDK that failed: what was being done, and the errno value.
public struct DPDKError: Error, Equatable, Sendable {
  public let code: Int32
  public let doing: String

  public init(_ code: Int32, _ doing: String) {
    self.code = code
    self.doing = doing
  }
}

/// Results of the calls in machnet_dpdk.h: a value, or a negated errno value.
@discardableResult
func check(_ result: Int32, _ doing: @autoclosure () -> String) throws(DPDKError) -> Int32 {
  guard result < 0 else { return result }
  throw DPDKError(-result, doing())
}
