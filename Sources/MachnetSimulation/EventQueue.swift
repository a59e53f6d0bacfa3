/// What is going to happen, by time; what happens at the same time happens in the order in which it was put in.
///
/// A heap with four children per node: two levels of a binary one in the lines of a single look.
@safe
public struct EventQueue<Event: BitwiseCopyable>: ~Copyable {
  private struct Entry: BitwiseCopyable {
    var time: UInt64
    var order: UInt64
    var event: Event

    @inline(__always)
    func isBefore(_ other: Entry) -> Bool { time != other.time ? time < other.time : order < other.order }
  }

  /// Safety: room for `capacity` entries, of which `count` are in use; owned.
  private var entries: UnsafeMutablePointer<Entry>
  private var capacity: Int
  public private(set) var count = 0
  private var inserted: UInt64 = 0

  /// - Parameter capacity: events that fit without an allocation.
  public init(capacity: Int = 1024) {
    self.capacity = max(4, capacity)
    unsafe entries = .allocate(capacity: self.capacity)
  }

  deinit { unsafe entries.deallocate() }

  /// When the next event is due; `UInt64.max`: there is none.
  public var nextTime: UInt64 { count == 0 ? UInt64.max : unsafe entries[0].time }

  public mutating func push(_ event: Event, at time: UInt64) {
    if count == capacity { grow() }
    let entry = Entry(time: time, order: inserted, event: event)
    inserted += 1
    var place = count
    count += 1
    // The hole moves up until nothing above is later.
    while place > 0 {
      let parent = (place - 1) / 4
      if unsafe entries[parent].isBefore(entry) { break }
      unsafe (entries + place).initialize(to: entries[parent])
      place = parent
    }
    unsafe (entries + place).initialize(to: entry)
  }

  public mutating func pop() -> (time: UInt64, event: Event)? {
    if count == 0 { return nil }
    let first = unsafe entries[0]
    count -= 1
    if count > 0 {
      let last = unsafe entries[count]
      var place = 0
      while true {
        let child = place * 4 + 1
        if child >= count { break }
        var earliest = child
        var other = child + 1
        while other < min(child + 4, count) {
          if unsafe entries[other].isBefore(entries[earliest]) { earliest = other }
          other += 1
        }
        if unsafe last.isBefore(entries[earliest]) { break }
        unsafe entries[place] = entries[earliest]
        place = earliest
      }
      unsafe entries[place] = last
    }
    return (first.time, first.event)
  }

  private mutating func grow() {
    let larger = UnsafeMutablePointer<Entry>.allocate(capacity: capacity * 2)
    unsafe larger.initialize(from: entries, count: count)
    unsafe entries.deallocate()
    unsafe entries = larger
    capacity *= 2
  }
}
