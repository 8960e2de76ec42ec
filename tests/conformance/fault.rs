//! One deviation of [`Model`](crate::model::Model) from the contract, and the rule that it breaks.

use tidings::replay::conformance::Rule;

macro_rules! faults {
    ($($rule:ident: $($name:ident),+;)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Fault {
            $($($name,)+)*
        }

        impl Fault {
            pub(crate) const ALL: &[(Fault, Rule)] = &[$($((Fault::$name, Rule::$rule),)+)*];
        }
    };
}

faults! {
    Answers: AppendFails, ReadFails, ForgetFails, RefusesForNoReason;
    InTime: AppendNeverEnds, ReadNeverEnds;
    NewLog: NewLogStartsAtOne, NewLogHasARecord;
    NewEpoch: EpochIsFixed;
    Outcomes: NoOutcomeForRefused, EmptyBatchFails;
    PresentRun: AppendsInAnotherRun, ReadsInAnotherRun, KeepsTheRunOfARecord;
    PositionsRise: NumbersStartAnewAfterForget, NumbersOfEachTopic, NumbersOfABatchFall, OneNumberForABatch;
    BatchTogether: BatchesMix;
    Head: HeadIsBehind, HeadIsAhead, HeadIsTheNewestHeld;
    RefusedAlone: RefusedFailsTheBatch, RefusedEndsTheBatch;
    NoTrace: RefusedIsStored;
    Acknowledged: OutcomesAreSwapped;
    Record: LabelsAreDropped, LabelsAreSorted, KeyIsDropped, EmptyKeyIsNone, BodyIsAltered, KindIsDropped, TimeInSeconds;
    TryAppend: TriesStoresAndDeclines, TriesAndDoesNotStore;
    OnlyAsked: ReadsAllTopics, ReadsTopicsByPrefix, ReadsTopicsByName, TopicsFoldCase;
    Ordered: PageIsByTopic, PageHasOneTwice;
    After: AfterIsInclusive, AfterSkipsOne;
    Earliest: EarliestSkipsOne;
    Last: LastIsOneMore, LastIsOneLess, LastOfEachTopic;
    Complete: PageHasAHole;
    MaxEvents: MaxEventsIsIgnored;
    MaxBytes: MaxBytesIsIgnored, MaxBytesIsOneLate;
    NotCutShort: PageIsEmptyUnderMaxBytes, PageIsShort;
    ThroughForward: ThroughIsStuck, ThroughIsTheFirst;
    ThroughCut: ThroughIsAlwaysNewest;
    ThroughNewest: ThroughIsTheLastRecord, ThroughIsAhead;
    Foreign: OtherEpochIsGood, OtherRunIsGood, AheadIsGood;
    NotForeign: StartIsForeign, NewestIsForeign, RemovedIsForeign;
    ForeignPage: ForeignPageHasRecords, ForeignPageGoesToTheStart;
    DroppedRead: DroppedReadHoldsTheLock;
    FinishRefuses: FinishedAccepts, FinishedAcceptsInItsBatch, FinishedIsAskedBefore, FinishedIsRefusedOtherwise;
    FinishListed: FinishedIsListedEarly, FinishedIsListedOnce, FinishedIsListedTwice, AllFinishedAreListed,
        RefusedEndMovesTheEnd;
    FinishKept: FinishedIsEvicted, FinishedIsNotListedOnceEvicted;
    FloorZero: FloorIsBelowTheOldest, ForgettingAnUnknownTopicRaisesTheFloor;
    FloorCovers: EvictionRaisesNoFloor, EvictionRaisesTheFloorTooLittle, ForgetRaisesNoFloor, FloorIsOfOneTopic,
        FloorIsOfTheHeld, ForgetTakesTheFloorBefore;
    FloorInside: FloorIsPastTheNewest;
    Evicts: NothingIsEvicted;
    EvictsOldest: TheSecondNewestIsEvicted, EvictedComesBack;
    ForgetRemoves: ForgetLeavesRecords, ForgetLeavesTheEnd, ForgetDoesNothing;
    ForgetOnly: ForgetRemovesAll, ForgetRemovesAllEnds;
    NothingLower: NumberIsGivenBeforeTheCommit;
    OneView: FloorIsOfAnEarlierView, ThroughIsOfALaterView, ForgetGoesOneByOne;
    SameEpoch: EpochIsDrawnAtOpen;
    NewRun: OpeningBeginsNoRun, RunNumberIsUsedAgain;
    ReopenKeeps: NewestIsLostAtOpen;
    ReopenFinished: EndsAreLostAtOpen;
    ReopenFloors: FloorsAreLostAtOpen;
    OlderRun: OlderRunsAreForeign;
    OlderRunPast: OlderRunsAreGood, OlderRunsAreGoodUpToTheLast;
}
