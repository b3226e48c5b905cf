(** The proof of observational blindness: the units of the second decoder want of two switches what
    those of the first want of them, swapped. *)
From Coq Require Import Reals Lra Lia List Arith Psatz FunctionalExtensionality.
Import ListNotations.
From Snowball Require Import Statement UniversalityStatement Vectors Kernel Model Runs Recall Nodes Build
  Universality.
Open Scope R_scope.

Section Swap.
Variables (a b : nat).
Definition swap (j : nat) : nat := if (j =? a)%nat then b else if (j =? b)%nat then a else j.
Definition swapped (on : list bool) : list bool := map (fun j => nth (swap j) on false) (seq 0 (length on)).
Lemma swap_swap j : swap (swap j) = j.
Proof.
  unfold swap. destruct (Nat.eqb_spec j a) as [->|]; [|destruct (Nat.eqb_spec j b) as [->|]].
  - destruct (Nat.eqb_spec b a); [auto|]. rewrite Nat.eqb_refl. auto.
  - rewrite Nat.eqb_refl. auto.
  - destruct (Nat.eqb_spec j a); [congruence|]. destruct (Nat.eqb_spec j b); [congruence|]. auto.
Qed.
Lemma swap_small k j : (a < k)%nat -> (b < k)%nat -> ((swap j < k)%nat <-> (j < k)%nat).
Proof. intros A B. unfold swap.
  destruct (Nat.eqb_spec j a) as [->|]; [|destruct (Nat.eqb_spec j b) as [->|]]; lia. Qed.
Lemma swapped_length on : length (swapped on) = length on.
Proof. unfold swapped. rewrite map_length, seq_length. reflexivity. Qed.
Lemma nth_swapped on j : on = [] \/ (a < length on)%nat /\ (b < length on)%nat
  -> nth j (swapped on) false = nth (swap j) on false.
Proof.
  intros [->|[A B]]; [destruct j, (swap _); reflexivity|]. destruct (Nat.lt_ge_cases j (length on)) as [H|H].
  - rewrite (nth_indep _ _ (nth (swap 0) on false)) by (rewrite swapped_length; auto).
    unfold swapped. rewrite (map_nth (fun j => nth (swap j) on false)), seq_nth by auto. reflexivity.
  - rewrite !nth_overflow; auto; [|rewrite swapped_length; auto]. apply Nat.nlt_ge.
    rewrite swap_small by auto. lia.
Qed.
Lemma swapped_swapped on : (a < length on)%nat -> (b < length on)%nat -> swapped (swapped on) = on.
Proof.
  intros A B. apply (nth_ext _ _ false false); [rewrite !swapped_length; auto|]. intros j _.
  rewrite !nth_swapped by (rewrite ?swapped_length; auto). rewrite swap_swap. reflexivity.
Qed.
Lemma swapped_app on x : (a < length on)%nat -> (b < length on)%nat -> swapped (on ++ [x]) = swapped on ++ [x].
Proof.
  intros A B. apply (nth_ext _ _ false false); [rewrite swapped_length, !app_length, swapped_length; auto|].
  intros j Hj.
  rewrite swapped_length, app_length in Hj. simpl in Hj.
  rewrite nth_swapped by (right; rewrite app_length; simpl; lia).
  destruct (Nat.lt_ge_cases j (length on)) as [H|H].
  - rewrite !app_nth1 by (rewrite ?swapped_length, ?swap_small; auto). rewrite nth_swapped; auto.
  - replace j with (length on) by lia. assert (swap (length on) = length on) as ->.
    { unfold swap. destruct (Nat.eqb_spec (length on) a); [lia|].
      destruct (Nat.eqb_spec (length on) b); [lia|]. auto. }
    rewrite !app_nth2 by (rewrite ?swapped_length; lia). rewrite swapped_length. reflexivity.
Qed.
Lemma sum_swap n f : (a < n)%nat -> (b < n)%nat -> sum n (fun j => f (swap j)) = sum n f.
Proof.
  intros A B. rewrite (sum_ext n _ (fun j => f j + ((if (j =? a)%nat then f b - f a else 0) + (if (j
    =? b)%nat then f a - f b else 0)))).
  - rewrite !sum_plus, (sum_one n (fun j => if (j =? a)%nat then f b - f a else 0) a),
      (sum_one n (fun j => if (j =? b)%nat then f a - f b else 0) b); auto.
    + rewrite !Nat.eqb_refl. ring.
    + intros j _ Hne. destruct (Nat.eqb_spec j b); [congruence|auto].
    + intros j _ Hne. destruct (Nat.eqb_spec j a); [congruence|auto].
  - intros j _. unfold swap. destruct (Nat.eqb_spec j a) as [Ea|Ea], (Nat.eqb_spec j b) as [Eb|Eb]; try ring;
      try (rewrite <- Ea); try (rewrite <- Eb); ring.
Qed.

Variable P : parameters.
Definition other : parameters := {| frame_of := frame_of P; nodes := nodes P; longest := longest P;
  spare_width := spare_width P;
  spare_heads := spare_heads P; side u j := side P u (swap j); node := node P; answer := answer P;
  coldness := coldness P; kappa := kappa P; zeta := zeta P; eta := eta P; K := K P |}.
Definition other_entries (E : list entry) : list entry := map (fun e : entry => (swapped (fst (fst e)),
  snd (fst e), snd e)) E.
Lemma good_other phi : good P phi -> good other phi.
Proof. intros []. constructor; auto. Qed.
Lemma reads_other m E : (a < m)%nat -> (b < m)%nat -> (forall e, In e E -> length (fst (fst e)) = m) ->
  reads P (fun _ => 1) E -> reads other (fun _ => 1) (other_entries E).
Proof.
  intros A B Len [Rn Re]. split; [unfold other_entries; rewrite map_length; exact Rn|]. intros u.
  destruct (Re u) as [R1 R2].
  assert (X : nth_entry (other_entries E) u = (swapped (fst (fst (nth_entry E u))), snd (fst (nth_entry E u)),
    snd (nth_entry E u))).
  { unfold nth_entry, other_entries.
    rewrite <- (map_nth (fun e : entry => (swapped (fst (fst e)), snd (fst e), snd e))). reflexivity. }
  rewrite X. cbn [fst snd]. split; [|exact R2]. intros j. cbn [side other]. rewrite R1. do 2 f_equal.
  symmetry. apply nth_swapped.
  destruct (Nat.lt_ge_cases u (length E)) as [Hu|Hu].
  - right. rewrite (Len _ (nth_entry_in E u Hu)). auto.
  - left. unfold nth_entry. rewrite nth_overflow by auto. reflexivity.
Qed.
Lemma answerable_other V m E : (a < m)%nat -> (b < m)%nat -> answerable V m E
  -> answerable V m (other_entries E).
Proof.
  intros A B [Ok Same]. split.
  - intros e I. apply in_map_iff in I. destruct I as (x & <- & Ix). cbn [fst snd]. rewrite swapped_length.
    apply (Ok x Ix).
  - intros e e' I I' H. apply in_map_iff in I, I'. destruct I as (x & <- & Ix), I' as (x' & <- & Ix').
    cbn [fst snd] in *.
    injection H as H1 H2. apply (Same x x' Ix Ix'). destruct (Ok x Ix) as [Lx _], (Ok x' Ix') as [Lx' _].
    rewrite (surjective_pairing (fst x)), (surjective_pairing (fst x')), H2. f_equal.
    rewrite <- (swapped_swapped (fst (fst x))), H1, swapped_swapped by lia. reflexivity.
Qed.
Lemma final_other A s tok : (a < switches P)%nat -> (b < switches P)%nat -> (forall j, s (swap j) = s j)
  -> final other A s tok = final P A s tok.
Proof.
  intros Ha Hb Hs. assert (F : forall u, fit other s u = fit P s u).
  { intros u. unfold fit. f_equal. unfold dot. change (switches other) with (switches P). cbn [side other].
    rewrite (sum_ext _ _ (fun j => (fun i => side P u i * s i) (swap j))) by (intros j _; cbn beta; rewrite Hs;
      reflexivity).
    exact (sum_swap (switches P) (fun i => side P u i * s i) Ha Hb). }
  apply functional_extensionality. intros i. unfold final.
  change (state P A s (tok i) (context P tok i) (result other (reading P s tok i) s tok i)
    = state P A s (tok i) (context P tok i) (result P (reading P s tok i) s tok i)).
  f_equal. apply functional_extensionality. intros x. unfold result. apply sum_ext. intros u _. f_equal.
  f_equal. f_equal.
  unfold gate. rewrite F. reflexivity.
Qed.
End Swap.

Theorem blindness : blindness_theorem.
Proof.
  intros V D L a b c delta p HD Ha Hb Hc Hdelta Hp theta half_head size rms_eps Ht Hsize Heps.
  set (fa := fun (r : row) (present : list bool) => nth a present false).
  set (fb := fun (r : row) (present : list bool) => nth b present false).
  assert (HV : (0 < V)%nat) by (eapply some_token; eauto).
  assert (HL : (0 < L)%nat) by lia. destruct (common_room L c Hc) as (g & g0 & Hg).
  assert (HQ : forall f : list bool -> bool, forall on, length on = (L - 1)%nat
    -> consistent V (chosen D (fun _ => f) on)).
  { intros f on _. apply (chosen_consistent V D (fun _ => f)); auto. }
  set (F := frame_for V L c g p theta half_head size rms_eps).
  set (E := all_asked L (chosen D fa)).
  assert (HE : answerable V L E) by (apply asked_ok; auto; exact (HQ (fun on => nth a on false))).
  destruct (parameters_exist F E (fun _ => 1) delta) as (P & EF & G & Rd & Pd); auto.
  - cbn. lra.
  - intros l. change ((if (l <? L)%nat then l else 0%nat) < L)%nat. destruct (Nat.ltb_spec l L); lia.
  - intros l. cbn. apply pos_INR.
  - set (P' := other a b P). set (E' := other_entries a b E).
    assert (Pm : switches P = L) by (rewrite EF; reflexivity).
    assert (G' : good P' delta) by (apply good_other; auto).
    assert (HE' : answerable V L E') by (apply answerable_other; auto; lia).
    assert (Rd' : reads P' (fun _ => 1) E') by (apply (reads_other a b P L); auto; try lia; intros e I;
      apply (proj1 HE e I)).
    assert (Hin : forall on q ans e, length on = (L - 1)%nat -> In (q, ans) (chosen D fa on)
      -> In e (entries (on ++ [false]) (bos :: q) ans) -> In e E)
      by (intros; eapply asked_in; eauto).
    assert (Hin' : forall on q ans e, length on = (L - 1)%nat -> In (q, ans) (chosen D fb on)
      -> In e (entries (on ++ [false]) (bos :: q) ans) -> In e E').
    { intros on q ans e Hon Hq He. apply entries_spec in He. destruct He as (x & y & Ea & Ee).
      apply in_map_iff. exists (swapped a b (on ++ [false]), (bos :: q) ++ x, snd e). cbn [fst snd]. split.
      - rewrite swapped_swapped by (rewrite app_length; simpl; lia). rewrite (surjective_pairing e), Ee.
        reflexivity.
      - apply (Hin (swapped a b on) q ans); [rewrite swapped_length; auto| |].
        + unfold chosen, fa. rewrite nth_swapped by lia. unfold swap. rewrite Nat.eqb_refl. exact Hq.
        + rewrite <- swapped_app by lia. rewrite Ea. apply entries_in. }
    exists (model P), (model P').
    assert (Frame : frame_of P' = F) by exact EF.
    split; [exact Pd|]. split; [exact Pd|]. split; [reflexivity|]. split; [reflexivity|].
    assert (B : forall R RE f, frame_of R = F
      -> good R delta -> reads R (fun _ => 1) RE -> answerable V L RE ->
      (forall on q ans e, length on = (L - 1)%nat -> In (q, ans) (chosen D (fun _ => f) on)
        -> In e (entries (on ++ [false]) (bos :: q) ans) -> In e RE) ->
      behaves (model R) V L c delta p (chosen D (fun _ => f))).
    { intros R RE f ER RG RR RA RI.
      split; [cbn [layers model]; rewrite map_length, seq_length, ER; change (S (L - 1) = L); lia|].
      split; [cbn; rewrite ER; reflexivity|]. intros on Hon.
      apply clauses with (g := g) (P := R) (E := RE); auto; rewrite ER; auto. }
    split; [apply (B P E (fun on => nth a on false)); auto|].
    split; [apply (B P' E' (fun on => nth b on false)); auto|].
    intros t HtV.
    assert (I : forall R, frame_of R = F -> good R delta -> let on := repeat true (L - 1) in
      (forall k, (k <= L - 1)%nat -> entering (model R) k t = plain R (turned_by L c g on k) (signs on k)
        (token t))
      /\ run (model R) (layers (model R)) t = final R (turned_by L c g on (L - 1) + turn L c g (L - 1))
        (signs on (L - 1)) (token t)).
    { intros R ER RG. apply intact with (V := V) (delta := delta); auto; rewrite ER; auto. }
    destruct (I P) as [I1 I2]; auto. destruct (I P') as [J1 J2]; auto.
    set (on := repeat true (L - 1)) in *.
    assert (Same : run (model P') (layers (model P')) t = run (model P) (layers (model P)) t).
    { rewrite I2, J2. apply final_other; try lia. intros j.
      assert (One : forall j, (j < L - 1)%nat -> nth j on false = true).
      { intros j' Hj'. unfold on. rewrite (nth_indep _ false true) by (rewrite repeat_length; auto).
        apply nth_repeat. }
      unfold signs. destruct (Nat.ltb_spec j (L - 1)) as [H|H], (Nat.ltb_spec (swap a b j) (L - 1)) as [H'|H'];
        auto.
      - rewrite !One by auto. reflexivity.
      - apply (swap_small a b (L - 1) j Ha Hb) in H. lia.
      - apply (swap_small a b (L - 1) j Ha Hb) in H'. lia. }
    split.
    + intros k i Hk. destruct (Nat.eq_dec k L) as [->|Hne]; [|rewrite I1, J1 by lia; reflexivity].
      unfold entering. assert (All : forall R, frame_of R = F
        -> firstn L (layers (model R)) = layers (model R)).
      { intros R ER. apply firstn_all2. cbn [layers model]. rewrite map_length, seq_length, ER.
        change (S (L - 1) <= L)%nat. lia. }
      rewrite !All by auto. rewrite Same. reflexivity.
    + intros x _. unfold logit. rewrite Same. reflexivity.
Qed.
