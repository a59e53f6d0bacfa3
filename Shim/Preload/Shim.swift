import CMachnetABI
import CTrampoline
import ShimChannel

@c(mn_probe) public func probe(_ p: UnsafeMutableRawPointer) -> Int32 {
  var r = unsafe RingReader(unsafe: p, capacity: 131072)
  switch r.peek() {
  case .empty: return 0
  case .damaged: return -1
  case .record(let record): return Int32(record.length)
  }
}
