import MachnetMemory
import MachnetWire

/// Messages in several pieces that are being put together: contexts of two sizes, their memory contiguous, so that a
/// whole message is one stretch of bytes. All pieces of a message but the last are of one length, so one bit per
/// piece says what is there: nothing that a peer sends makes a message whole before every byte of it has come.
struct Assembly {
  struct Context: BitwiseCopyable {
    var isUsed: Bool
    var session: UInt32
    var message: UInt32
    var total: UInt32
    var pieces: UInt32
    var received: UInt32
    /// Its sender has given it up: it is only kept until all pieces that were sent have come.
    var isAbandoned = false
    /// From then on it may be taken from its session, ns. Each new piece moves it on, but never beyond `patience` from then.
    var stalledAt: UInt64
    /// The next context in its bucket.
    var next: UInt32
  }

  let contexts: Table<Context>
  private let free: Table<UInt32>
  private var freeSmall: Int
  private let freeLarge: Table<UInt32>
  private var freeLargeCount: Int
  private let buckets: Table<UInt32>
  private let bits: Table<UInt64>
  private let memory: Table<UInt8>
  let small: Int
  let large: Int
  private let low: Int
  /// How long a message may stand still, ns.
  private let patience: UInt64
  /// Where the next search for one that does begins.
  private var hand: UInt32 = 0

  /// Pieces of a small message: at most 65,536 / 496, at the least piece length.
  private static var smallWords: Int { @_noLocks get { 4 } }
  private static var largeWords: Int { @_noLocks get { 272 } }
  /// Contexts that one session may hold: of both sizes together, and of the large ones.
  static func most(of total: Int) -> Int { max(4, total / 4) }
  static func mostLarge(of total: Int) -> Int { max(1, total / 4) }
  /// Who sends fewer pieces than one in this time, ns, falls behind: a piece now and then does not keep a context for ever.
  private static var pieceTime: UInt64 { @_noLocks get { 100_000_000 } }
  /// Contexts that one search looks at.
  private static var lookMax: Int { @_noLocks get { 256 } }

  init(small: Int, large: Int, patience: UInt64) {
    self.small = small
    self.large = large
    self.patience = patience
    low = small / 4
    contexts = Table(count: small + large)
    free = Table(count: small)
    freeLarge = Table(count: large)
    for index in 0..<small { free[index] = UInt32(small - 1 - index) }
    for index in 0..<large { freeLarge[index] = UInt32(small + large - 1 - index) }
    freeSmall = small
    freeLargeCount = large
    buckets = Table(count: 1024)
    bits = Table(count: small * Assembly.smallWords + large * Assembly.largeWords)
    memory = Table(count: small * TransportOptions.smallAssembly + large * TransportOptions.messageMax)
  }

  func release() {
    contexts.release()
    free.release()
    freeLarge.release()
    buckets.release()
    bits.release()
    memory.release()
  }

  @inline(__always) @_noLocks
  private func bucket(_ session: UInt32, _ message: UInt32) -> UInt32 {
    ((session &* 0x9E37_79B9) ^ (message &* 0x85EB_CA6B)) >> 22
  }

  /// The context of a message; `none`: there is none yet.
  @_noLocks
  func find(_ session: UInt32, _ message: UInt32) -> UInt32 {
    var at = buckets[bucket(session, message)] &- 1
    while at != none {
      if contexts[at].session == session && contexts[at].message == message { return at }
      at = contexts[at].next
    }
    return none
  }

  /// A quarter and less of the contexts for messages up to 64 KiB, or of the large ones, is free. Those are for packets that come
  /// in order: what they belong to is sent to its end whatever becomes of other messages, so they come back.
  @inline(__always) @_noLocks
  func isLow(total: Int, pieces: Int) -> Bool { isSmall(total, pieces) ? isLow : freeLargeCount <= large / 4 }

  @inline(__always)
  var isLow: Bool { @_noLocks get { freeSmall <= low } }

  @inline(__always) @_noLocks
  func isSmall(_ total: Int, _ pieces: Int) -> Bool {
    total <= TransportOptions.smallAssembly && pieces <= Assembly.smallWords &* 64
  }

  /// A new context; `none`: all of that size are in use.
  @_noLocks
  mutating func make(_ session: UInt32, _ message: UInt32, total: Int, pieces: Int, now: UInt64) -> UInt32 {
    let isSmall = isSmall(total, pieces)
    if pieces > Assembly.largeWords &* 64 { return none }
    let index: UInt32
    if isSmall && freeSmall != 0 {
      freeSmall &-= 1
      index = free[freeSmall]
    } else if !isSmall && freeLargeCount != 0 {
      freeLargeCount &-= 1
      index = freeLarge[freeLargeCount]
    } else {
      return none
    }
    let bucket = bucket(session, message)
    contexts[index] = Context(
      isUsed: true, session: session, message: message, total: UInt32(truncatingIfNeeded: total),
      pieces: UInt32(truncatingIfNeeded: pieces), received: 0, stalledAt: now &+ patience, next: buckets[bucket] &- 1)
    buckets[bucket] = index &+ 1
    let first = firstWord(index)
    var word = 0
    while word < (pieces &+ 63) / 64 {
      bits[first &+ word] = 0
      word &+= 1
    }
    return index
  }

  /// The session of a message that stands still and has a context of the size that is asked for; `none`: there is none, or not
  /// among those that were looked at this time.
  ///
  /// - Parameter session: not this one.
  @inline(never) @_noLocks
  mutating func stalled(total: Int, pieces: Int, except session: UInt32, now: UInt64) -> UInt32 {
    let isSmall = isSmall(total, pieces)
    let first = isSmall ? 0 : small
    let count = isSmall ? small : large
    var left = min(count, Assembly.lookMax)
    while left != 0 {
      left &-= 1
      hand = hand &+ 1
      if Int(hand) < first || Int(hand) >= first &+ count { hand = UInt32(truncatingIfNeeded: first) }
      let it = contexts[hand]
      if it.isUsed && it.session != session && now >= it.stalledAt { return it.session }
    }
    return none
  }

  /// Whether this is (still) the context of a session's message.
  @inline(__always) @_noLocks
  func holds(_ index: UInt32, _ session: UInt32, _ message: UInt32) -> Bool {
    index != none && contexts[index].isUsed && contexts[index].session == session && contexts[index].message == message
  }

  @_noLocks
  mutating func release(_ index: UInt32) {
    let bucket = bucket(contexts[index].session, contexts[index].message)
    if buckets[bucket] == index &+ 1 {
      buckets[bucket] = contexts[index].next &+ 1
    } else {
      var at = buckets[bucket] &- 1
      while at != none && contexts[at].next != index { at = contexts[at].next }
      if at != none { contexts[at].next = contexts[index].next }
    }
    contexts[index].isUsed = false
    if Int(index) < small {
      free[freeSmall] = index
      freeSmall &+= 1
    } else {
      freeLarge[freeLargeCount] = index
      freeLargeCount &+= 1
    }
  }

  /// Frees what a session holds.
  @_noLocks
  mutating func forget(session: UInt32) {
    var index: UInt32 = 0
    while Int(index) < contexts.count {
      if contexts[index].isUsed && contexts[index].session == session { release(index) }
      index &+= 1
    }
  }

  @inline(__always) @_noLocks
  private func firstWord(_ index: UInt32) -> Int {
    Int(index) < small
      ? Int(index) &* Assembly.smallWords
      : small &* Assembly.smallWords &+ (Int(index) &- small) &* Assembly.largeWords
  }

  @_noLocks
  func content(_ index: UInt32) -> Bytes {
    let offset =
      Int(index) < small
      ? Int(index) &* TransportOptions.smallAssembly
      : small &* TransportOptions.smallAssembly &+ (Int(index) &- small) &* TransportOptions.messageMax
    precondition(Int(index) < contexts.count)
    return unsafe Bytes(unsafe: memory.base + offset, count: Int(contexts[index].total))
  }

  /// Puts piece number `piece` at `offset`. The caller has checked that it lies within the message.
  ///
  /// - Returns: whether the message is whole now.
  @_noLocks
  mutating func put(_ index: UInt32, piece: Int, offset: Int, _ bytes: Bytes, now: UInt64) -> Bool {
    // Beyond where it was given up.
    if piece >= Int(contexts[index].pieces) { return false }
    let word = firstWord(index) &+ piece >> 6
    let bit: UInt64 = 1 << UInt64(piece & 63)
    // Its packet was never received before, so a second copy is a lie; the first one stays.
    if bits[word] & bit != 0 { return false }
    bits[word] |= bit
    content(index).copy(bytes, to: offset)
    contexts[index].stalledAt = min(contexts[index].stalledAt &+ Assembly.pieceTime, now &+ patience)
    contexts[index].received &+= 1
    return contexts[index].received == contexts[index].pieces
  }

  /// The sender gives a message up behind its first `pieces` pieces.
  ///
  /// - Returns: whether all of those have come.
  @_noLocks
  mutating func abandon(_ index: UInt32, pieces: Int) -> Bool {
    contexts[index].isAbandoned = true
    contexts[index].pieces = min(contexts[index].pieces, UInt32(truncatingIfNeeded: pieces))
    return contexts[index].received >= contexts[index].pieces
  }
}
